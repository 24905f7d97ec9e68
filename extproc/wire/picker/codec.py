"""The picker protocol's messages: what they add to ext_proc's, and how bodies go back in pieces.

Owns the protobuf of FULL_DUPLEX_STREAMED streams. What the pieces mean is picker.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import NamedTuple

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.types import ip_port
from extproc.core.contract import (
    ATTRIBUTES_NAMESPACE,
    ENCODING_HEADER,
    FAIRNESS_HEADER,
    GATEWAY_FAIRNESS_HEADER,
    GATEWAY_OBJECTIVE_HEADER,
    GATEWAY_SLO_TPOT_HEADER,
    GATEWAY_SLO_TTFT_HEADER,
    LB_ENDPOINTS_KEY,
    LB_NAMESPACE,
    LB_SERVED_KEY,
    OBJECTIVE_HEADER,
    RETRIES_HEADER,
    SLO_TPOT_HEADER,
    SLO_TTFT_HEADER,
    SUBSET_KEY,
    SUBSET_NAMESPACE,
    UPSTREAM_ATTRIBUTE,
)
from extproc.wire.codec import API_KEY, AUTHORIZATION, JSON, set_header, tell

#: A body's pieces are no longer: the protocol's implementations keep to it, gRPC's windows like it.
CHUNK_BYTES_MAX = 62_000
#: Endpoints of a subset that are read; what is beyond is not chosen.
SUBSET_MAX = 10_000
#: How far a retry goes on in the list at the most: Envoy looks again where it meets an endpoint that it has
#: tried (the predicate previous_hosts), five times with Envoy Gateway, and each look takes the list's next.
LOOKS_PER_TRY = 6
#: Spellings of addresses whose reading is kept: each request names a pool's endpoints anew.
ADDRESSES_KEPT = 4 * SUBSET_MAX


class HeaderNames(NamedTuple):
    """The headers in which a gateway that is trusted says whose a request is, and how urgent."""

    fairness: str
    objective: str
    ttft: str
    tpot: str


#: By `picker.header_names`. Those of the other are a client's word, and not read.
NAMES = {
    "llm-d": HeaderNames(FAIRNESS_HEADER, OBJECTIVE_HEADER, SLO_TTFT_HEADER, SLO_TPOT_HEADER),
    "gateway": HeaderNames(
        GATEWAY_FAIRNESS_HEADER, GATEWAY_OBJECTIVE_HEADER, GATEWAY_SLO_TTFT_HEADER, GATEWAY_SLO_TPOT_HEADER
    ),
}

#: Body modes, as a stream's first message says them; None where it does not.
FULL_DUPLEX = pb.ProtocolConfiguration.FULL_DUPLEX_STREAMED
NO_BODY = pb.ProtocolConfiguration.NONE


@dataclass(frozen=True, slots=True)
class Modes:
    """How a stream's bodies come."""

    request: int
    response: int


def modes(data: bytes) -> Modes | None:
    """What a stream's first message says of its modes; None when it says nothing.

    Raises google.protobuf.message.DecodeError on garbage.
    """
    message = pb.ProcessingRequest.FromString(data)
    if not message.HasField("protocol_config"):
        return None
    said = message.protocol_config
    return Modes(said.request_body_mode, said.response_body_mode)


def subset(message: pb.ProcessingRequest) -> tuple[str, ...] | None:
    """The endpoints that a gateway allows, as `ip:port` or a bare `ip`; None where it does not say.

    A list, or one comma-separated string. What is no address cannot be chosen and is left out.
    """
    filters = message.metadata_context.filter_metadata
    if SUBSET_NAMESPACE not in filters or SUBSET_KEY not in filters[SUBSET_NAMESPACE].fields:
        return None
    value = filters[SUBSET_NAMESPACE].fields[SUBSET_KEY]
    if value.WhichOneof("kind") == "list_value":
        names = [each.string_value for each in value.list_value.values[:SUBSET_MAX]]
    else:
        names = value.string_value.split(",", SUBSET_MAX)[:SUBSET_MAX]
    found = (address_of(name.strip()) for name in names)
    return tuple(dict.fromkeys(address for address in found if address))


@lru_cache(maxsize=ADDRESSES_KEPT)
def address_of(name: str) -> str:
    """An address in its one spelling: `ip:port`, or the `ip` alone; "" for what is neither."""
    try:
        return ip_port(name)
    except ValueError:
        pass
    try:
        # Pickers compare pods by their IP, and some gateways name no port.
        return ip_port(f"[{name}]:1" if ":" in name else f"{name}:1").rpartition(":")[0]
    except ValueError:
        return ""


def served_by(message: pb.ProcessingRequest) -> str:
    """Who served, by the gateway's metadata or Envoy's own attribute; "" where neither says."""
    filters = message.metadata_context.filter_metadata
    if LB_NAMESPACE in filters and LB_SERVED_KEY in filters[LB_NAMESPACE].fields:
        said = filters[LB_NAMESPACE].fields[LB_SERVED_KEY].string_value
        # A gateway that tries several may say them all: the last one it was.
        if served := address_of(said.rpartition(",")[2].strip()):
            return served
    if ATTRIBUTES_NAMESPACE in message.attributes:
        fields = message.attributes[ATTRIBUTES_NAMESPACE].fields
        if UPSTREAM_ATTRIBUTE in fields:
            return address_of(fields[UPSTREAM_ATTRIBUTE].string_value)
    return ""


def _for_tries(addresses: tuple[str, ...], tries: int) -> Iterable[str]:
    """The list, named again and again until that many tries end on it."""
    if tries == 1:
        return addresses
    return islice(cycle(addresses), max(len(addresses), 1 + (tries - 1) * LOOKS_PER_TRY))


def goes(
    addresses: tuple[str, ...],
    about: dict[str, str],
    *,
    length: int | None,
    without_keys: bool,
    clear_route_cache: bool,
    as_json: bool,
    tries: int = 1,
    engine_key: tuple[str, str] | None = None,
) -> bytes:
    """The decision as the answer to the request's headers.

    `tries` is how often the gateway tries whatever this says: `picker.tries`.

    `length` is the body's that goes on, None where none does or where trailers follow it (then it has
    none). `without_keys` takes our API keys away. `as_json` has the body declared as what it was
    read as.
    """
    response = pb.ProcessingResponse()
    common = response.request_headers.response
    common.clear_route_cache = clear_route_cache
    mutation = common.header_mutation
    endpoints = ",".join(_for_tries(addresses, tries))
    set_header(mutation, LB_ENDPOINTS_KEY, endpoints)
    # Where the gateway's rules allow it, it tries as often as the list has endpoints.
    set_header(mutation, RETRIES_HEADER, str(len(addresses) - 1))
    # What a client says there is no gateway's word.
    # A packed answer says nothing to who reads its counts.
    mutation.remove_headers.extend((SUBSET_KEY, LB_SERVED_KEY, ENCODING_HEADER))
    if without_keys:
        mutation.remove_headers.extend((AUTHORIZATION, API_KEY))
    if engine_key:
        set_header(mutation, *engine_key)
    if length is not None:
        set_header(mutation, "content-length", str(length))
    if as_json:
        set_header(mutation, "content-type", JSON)
    tell(response, endpoints, about)
    return response.SerializeToString()


def pieces(phase: str, body: bytes, *, end: bool) -> Iterator[bytes]:
    """A body as the answers to a phase (request_body or response_body), each with at most CHUNK_BYTES_MAX.

    `end` marks the last piece as the message's; an empty body that ends is one empty piece.
    """
    for at in range(0, len(body) or 1, CHUNK_BYTES_MAX):
        piece = body[at : at + CHUNK_BYTES_MAX]
        last = at + CHUNK_BYTES_MAX >= len(body)
        if not piece and not end:
            return
        response = pb.ProcessingResponse()
        streamed = getattr(response, phase).response.body_mutation.streamed_response
        streamed.body = piece
        streamed.end_of_stream = end and last
        # A piece that is empty and does not end is as good as unset: the oneof must be set all the same.
        streamed.SetInParent()
        yield response.SerializeToString()
