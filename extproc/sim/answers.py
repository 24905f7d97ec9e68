"""A response cache over requests as they came: which of them it would have answered.

Owns the play: least recently used, bounded by bytes, answers too old are asked anew. A repeat that comes
while the first still runs counts as answered, as single flight does it. Answers count unpacked, and one
tenant's bound of its own is left out. Simulated; pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from extproc.sim.arrival import Workload
from extproc.sim.served import Served

#: What an entry takes beside its answer, and an answer's bytes a token where nobody counted them.
ENTRY_BYTES, TOKEN_BYTES = 512, 6
#: From its arrival to the end of a request that is answered from a cache.
HIT_NS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """A cache to be played: its bytes over all tenants, and how long an answer may be given again."""

    bytes_max: int
    ttl_s: float = 3_600.0


class AskedAnswer(NamedTuple):
    """One request, in order of time: when, what makes it equal to another (None: it is not cached), and how
    many bytes its answer has (0: it was none to keep)."""

    at_ns: int
    key: Hashable | None
    size: int


def answered_again(asked: Iterable[AskedAnswer], cache: CacheSize) -> list[bool]:
    """Of each request whether the cache would have answered it."""
    kept: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()
    held, ttl_ns = 0, round(cache.ttl_s * 1e9)
    found = []
    for at_ns, key, size in asked:
        known = kept.get(key) if key is not None else None
        hit = known is not None and at_ns - known[0] < ttl_ns
        found.append(hit)
        if key is None:
            continue
        if hit:
            kept.move_to_end(key)
            continue
        if known is not None:
            held -= kept.pop(key)[1]
        whole = size + ENTRY_BYTES
        if size <= 0 or whole > cache.bytes_max:
            continue
        kept[key] = (at_ns, whole)
        held += whole
        while held > cache.bytes_max:
            held -= kept.popitem(last=False)[1][1]
    return found


def repeated(workload: Workload, cache: CacheSize) -> list[bool]:
    """Of each arrival whether it repeats one of the same tenant, as far as its prefix blocks tell.

    Equal are those of equal blocks, endings and numbers of tokens. Prompts of which nobody knows the ending
    (Azure's, ServeGen's, made-up ones) are never equal.
    """
    return answered_again(
        (
            AskedAnswer(
                each.at_ns,
                None if each.ending is None else (each.tenant, each.prompt_tokens, each.blocks, each.ending),
                each.output_tokens * TOKEN_BYTES,
            )
            for each in workload.arrivals
        ),
        cache,
    )


def left_of(workload: Workload, hits: Sequence[bool]) -> Workload:
    """The arrivals that reach a replica; all where there is no cache."""
    if not any(hits):
        return workload
    left = tuple(each for each, hit in zip(workload.arrivals, hits, strict=True) if not hit)
    return replace(workload, arrivals=left)


def with_hits(workload: Workload, hits: Sequence[bool], served: Sequence[Served]) -> list[Served]:
    """What became of all: the hits at once, the others (in order) as they were `served`."""
    others = iter(served)
    classes = {each.arrival.tenant: each.service_class for each in served}
    return [
        Served(
            arrival=arrival,
            outcome="ok",
            endpoint="",
            decided_ns=arrival.at_ns,
            first_ns=arrival.at_ns + HIT_NS,
            end_ns=arrival.at_ns + HIT_NS,
            cached_tokens=0,
            service_class=classes.get(arrival.tenant, "standard"),
        )
        if hit
        else next(others)
        for arrival, hit in zip(workload.arrivals, hits, strict=True)
    ]
