"""One ADS stream's protocol (state of the world): requests in, responses out, no I/O.

Owns who is owed what. Its laws:

- At most one response of a type is unanswered; what changes meanwhile is sent after the answer, and
  then only its newest state. So nothing queues, however slow the Envoy.
- Clusters go before endpoints and keys. A response with clusters makes Envoy warm what it changes, and it
  waits for endpoints and keys then that it may not ask for again, so they are all sent anew.
- What was refused is not sent again until it has changed; what Envoy had, it keeps. Endpoints that were
  refused together are sent once more one by one, so that one bad pool does not stop the others.
- A request with another nonce than the last response's is stale and changes nothing: Envoy answers the
  last response too, with the names that it then wants.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from extproc._pb import discovery_pb2 as pb
from extproc.control.snapshot import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    SECRET_TYPE,
    TYPES,
    FleetSnapshot,
    Resource,
)

log = logging.getLogger(__name__)

#: Names in one request; an Envoy of ours asks for one a pool.
NAMES_MAX = 4096
#: What is logged of a refusal's text: its end, since Envoy shows the whole resource before the reason.
DETAIL_CHARS_MAX = 500
#: What is kept of an Envoy's name.
NODE_CHARS_MAX = 128

WILDCARD = "*"
SHORT = {CLUSTER_TYPE: "cds", ENDPOINT_TYPE: "eds", SECRET_TYPE: "sds"}


class RemoteProtocolError(Exception):
    """The peer does not speak ADS; its stream is to be ended."""


@dataclass(slots=True)
class Subscription:
    """What a stream wants of one type, and what it has.

    `held` is what Envoy has accepted; `sent` the unanswered response; `owed` what must go out although
    it was accepted, or because a refusal left it unclear; `suspect` what was refused together with
    others; `refused` what Envoy would not take.
    """

    names: frozenset[str] = frozenset()
    nonce: str = ""
    sent: dict[str, Resource] | None = None
    sent_version: str = ""
    held: dict[str, Resource] = field(default_factory=dict)
    held_version: str = ""
    owed: set[str] = field(default_factory=set)
    suspect: set[str] = field(default_factory=set)
    refused: dict[str, Resource] = field(default_factory=dict)


class AdsStream:
    """The state of one stream. `counts` is shared with whoever shows it."""

    def __init__(self, counts: Counter[str] | None = None) -> None:
        self.counts = Counter() if counts is None else counts
        self.node = ""
        self._snapshot: FleetSnapshot | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._nonces = 0

    def receive(self, data: bytes) -> list[bytes]:
        """Take a serialised DiscoveryRequest; gives what is to be sent, in order, one message a type at most.

        Raises RemoteProtocolError.
        """
        try:
            request = pb.DiscoveryRequest.FromString(data)
        except DecodeError as error:
            raise RemoteProtocolError("not a DiscoveryRequest") from error
        if len(request.resource_names) > NAMES_MAX:
            raise RemoteProtocolError(f"more than {NAMES_MAX} resource names")
        if request.node.id and not self.node:
            self.node = request.node.id[:NODE_CHARS_MAX]
        if request.type_url not in TYPES:
            self.counts["unknown_type"] += 1
            return []
        subscription = self._subscriptions.get(request.type_url)
        if subscription is None:
            # A nonce in a type's first request is of another stream and says nothing here.
            subscription = self._subscriptions[request.type_url] = Subscription()
        elif request.response_nonce != subscription.nonce:
            self.counts["stale"] += 1
            return []
        elif subscription.sent is not None:
            self._answered(request, subscription)
        names = frozenset(request.resource_names)
        if names != subscription.names:
            subscription.names = names
            if request.type_url != CLUSTER_TYPE:
                # What is not asked for any more may be forgotten; asked for again, it is sent again.
                subscription.owed &= names
                subscription.suspect &= names
                subscription.held = {name: r for name, r in subscription.held.items() if name in names}
                subscription.refused = {n: r for n, r in subscription.refused.items() if n in names}
        return self._due()

    def publish(self, snapshot: FleetSnapshot) -> list[bytes]:
        """Take a newer snapshot; gives what is to be sent now, in order, one message a type at most."""
        self._snapshot = snapshot
        return self._due()

    @property
    def held_version(self) -> str:
        """The version of the endpoints that Envoy last accepted; empty before the first."""
        subscription = self._subscriptions.get(ENDPOINT_TYPE)
        return subscription.held_version if subscription else ""

    @property
    def known(self) -> frozenset[tuple[str, str]] | None:
        """The (pool, address) pairs that Envoy has accepted; None before it has accepted any endpoints."""
        subscription = self._subscriptions.get(ENDPOINT_TYPE)
        if subscription is None or not subscription.held_version:
            return None
        return frozenset().union(*(resource.members for resource in subscription.held.values()))

    def _answered(self, request: pb.DiscoveryRequest, subscription: Subscription) -> None:
        sent = subscription.sent
        assert sent is not None
        subscription.sent = None
        short = SHORT[request.type_url]
        if not request.HasField("error_detail"):
            self.counts["acks"] += 1
            subscription.held = sent if request.type_url == CLUSTER_TYPE else subscription.held | sent
            subscription.held_version = subscription.sent_version
            subscription.suspect -= sent.keys()
            return
        self.counts["nacks"] += 1
        self.counts[f"nacks.{short}"] += 1
        # Envoy may have taken parts of it, so that what it held before is to be told again, too.
        subscription.owed |= sent.keys() or {WILDCARD}
        if request.type_url == CLUSTER_TYPE:
            subscription.refused = sent
        elif len(sent) > 1:
            subscription.suspect |= sent.keys()
        else:
            subscription.refused |= sent
        log.error(
            "envoy %s refused %s version %s (%s) and keeps what it has: %s",
            self.node,
            short,
            subscription.sent_version,
            ", ".join(sorted(sent)[:8]),
            _why(request),
        )

    def _due(self) -> list[bytes]:
        responses = (self._response(type_url) for type_url in TYPES)
        return [response for response in responses if response is not None]

    def _response(self, type_url: str) -> bytes | None:
        subscription = self._subscriptions.get(type_url)
        if subscription is None or subscription.sent is not None or self._snapshot is None:
            return None
        resources = self._snapshot.of(type_url)
        choose = _clusters if type_url == CLUSTER_TYPE else _named
        chosen = choose(subscription, resources.by_name)
        if chosen is None:
            if subscription.held_version and subscription.owed.isdisjoint(resources.by_name):
                subscription.held_version = resources.version  # another version of the same
            return None
        self._nonces += 1
        subscription.nonce = str(self._nonces)
        subscription.sent, subscription.sent_version = chosen, resources.version
        if type_url != CLUSTER_TYPE:
            subscription.owed -= chosen.keys()
        else:
            subscription.owed.clear()
            for each in (ENDPOINT_TYPE, SECRET_TYPE):
                if named := self._subscriptions.get(each):
                    named.owed = set(named.names)
                    named.refused.clear()
        self.counts["responses"] += 1
        response = pb.DiscoveryResponse(
            version_info=resources.version, type_url=type_url, nonce=subscription.nonce
        )
        for resource in chosen.values():
            response.resources.add(type_url=type_url, value=resource.data)
        data: bytes = response.SerializeToString()
        return data


def _why(request: pb.DiscoveryRequest) -> str:
    """Envoy's reason; of a secret's it is not told, since the secret may stand in it."""
    if request.type_url == SECRET_TYPE:
        return "not shown, since keys may stand in it"
    return " ".join(request.error_detail.message[-DETAIL_CHARS_MAX:].split())


def _clusters(subscription: Subscription, by_name: Mapping[str, Resource]) -> dict[str, Resource] | None:
    """The clusters to send, always whole: one that is missing is thereby removed. None: nothing is due."""
    everything = not subscription.names or WILDCARD in subscription.names
    wanted = {name: r for name, r in by_name.items() if everything or name in subscription.names}
    if not subscription.nonce:
        return wanted  # even none at all: a starting Envoy waits for it
    refused = bool(subscription.refused) and wanted == subscription.refused
    held = wanted == subscription.held and not subscription.owed
    return None if refused or held else wanted


def _named(subscription: Subscription, by_name: Mapping[str, Resource]) -> dict[str, Resource] | None:
    """The pools' endpoints, or keys, to send: those that changed. None: nothing is due."""
    due = {
        name: by_name[name]
        for name in sorted(subscription.names & by_name.keys())
        if (name in subscription.owed or subscription.held.get(name) != by_name[name])
        and subscription.refused.get(name) != by_name[name]
    }
    trusted = {name: resource for name, resource in due.items() if name not in subscription.suspect}
    if trusted or not due:
        return trusted or None
    first = next(iter(due))
    return {first: due[first]}
