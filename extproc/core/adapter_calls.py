"""Which LoRA adapter is to be loaded where, of engines that load those alone that they are told of.

Owns the choice; the calls are made by the service (service/adapters.py). Pure.

An adapter that nobody has is loaded at once where a place is free, or a cold one can go, or one that another
replica has too. A copy elsewhere is loaded when requests have waited for those that have it as long as its
load takes (to rent until that has cost as much as to buy: at most twice what who knows the future would pay),
and as long as those who wait for that replica already: where all are full, a copy makes no room.
To drop one that was used a moment ago costs twice, and the last copy of such a one goes for an adapter that
nobody has alone: so adapters do not chase each other. None with a request is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from extproc.core.adapters import LoadedAdapters
from extproc.core.decide import RoutingRequest
from extproc.core.endpoint import Endpoint
from extproc.core.forecast import start_ms
from extproc.core.load import MS_NS

#: How often it is seen who waits.
TURN_NS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class AdapterCall:
    """Load an adapter at an address; before that, drop another there ("": none)."""

    address: str
    load: str
    unload: str = ""


@dataclass(frozen=True, slots=True)
class WantedAdapter:
    """Requests wait for an adapter: how long the first of them has, and where it may go."""

    waited_ms: float
    allows: Callable[[Endpoint], bool]


def first_waiting(
    waiting: Iterable[RoutingRequest], names: Mapping[str, Collection[str]]
) -> dict[str, dict[str, RoutingRequest]]:
    """By pool and adapter, of these `names`: the first request that waits for it."""
    first: dict[str, dict[str, RoutingRequest]] = {name: {} for name in names}
    for routing in waiting:
        if routing.model in names.get(routing.pool, ()):
            known = first[routing.pool].setdefault(routing.model, routing)
            if routing.arrived_ns < known.arrived_ns:
                first[routing.pool][routing.model] = routing
    return first


def wanted(first: Mapping[str, RoutingRequest], *, now_ns: int) -> dict[str, WantedAdapter]:
    """What the first of those that wait for each adapter ask for."""
    return {
        name: WantedAdapter((now_ns - each.arrived_ns) / MS_NS, each.needs(each.permits).allows)
        for name, each in first.items()
    }


def adapter_calls(
    endpoints: Sequence[Endpoint],
    wanted: Mapping[str, WantedAdapter],
    *,
    busy: Collection[str],
    coming: Collection[str],
    rests: Callable[[str, str], bool],
    now_ns: int,
    alone: bool = True,
) -> list[AdapterCall]:
    """What to call now, longest wait first: one call at an endpoint, one load of an adapter at once.

    `busy` are addresses with a call under way, `coming` the adapters that are being loaded. `rests(address,
    name)` says that a load there failed a moment ago. Beside other services (not `alone`) only a cold adapter
    is dropped: their requests are not known here.
    """
    taken, found = set(busy), []
    copies = Counter(name for each in endpoints if each.ready for name in _loaded(each))
    for name, want in sorted(wanted.items(), key=lambda item: -item[1].waited_ms):
        if name in coming:
            continue
        may = [each for each in endpoints if each.ready and each.adapters is not None and want.allows(each)]
        open_to = [each for each in may if each.address not in taken and not rests(each.address, name)]
        having = [each for each in may if name in _loaded(each)]
        makes = partial(_made, copies=copies, again=bool(having), now_ns=now_ns, alone=alone)
        queued_ms = partial(_queued_ms, wanted=wanted, but=name)
        best = _best([each for each in open_to if each not in having and not _full(each)], makes, queued_ms)
        if best is None:
            continue
        endpoint, place = best
        home_ms = min((start_ms(each) for each in having if not _full(each)), default=None)
        if home_ms is not None and home_ms <= start_ms(endpoint) + place.cost_ms:
            continue
        if want.waited_ms < place.cost_ms + (queued_ms(endpoint) if having else -place.load_ms):
            continue
        taken.add(endpoint.address)
        copies[place.drops] -= 1
        found.append(AdapterCall(endpoint.address, name, place.drops))
    return found


class MadePlace(NamedTuple):
    """A place for an adapter: what it costs with the load, the load alone, who is dropped ("": nobody)."""

    cost_ms: float
    load_ms: float
    drops: str = ""


def _best(
    may: Sequence[Endpoint],
    makes: Callable[[LoadedAdapters], MadePlace | None],
    queued_ms: Callable[[Endpoint], float],
) -> tuple[Endpoint, MadePlace] | None:
    """Where a request could begin the soonest, and the place there."""
    best: tuple[tuple[float, int, str], Endpoint, MadePlace] | None = None
    for each in may:
        place = makes(each.adapters) if each.adapters is not None else None
        if place is not None:
            rank = (start_ms(each) + queued_ms(each) + place.cost_ms, len(_loaded(each)), each.address)
            if best is None or rank < best[0]:
                best = rank, each, place
    return best and best[1:]


def _queued_ms(endpoint: Endpoint, *, wanted: Mapping[str, WantedAdapter], but: str) -> float:
    """How long requests have waited that it could serve as it is, those for one adapter left out."""
    loaded = _loaded(endpoint)
    return max(
        (
            want.waited_ms
            for name, want in wanted.items()
            if name != but and name in loaded and want.allows(endpoint)
        ),
        default=0.0,
    )


def _made(
    adapters: LoadedAdapters, *, copies: Mapping[str, int], again: bool, now_ns: int, alone: bool
) -> MadePlace | None:
    """A place on a replica; `again`: for a copy of one that others have."""
    load_ms = adapters.of.load_ms
    if len(adapters) < adapters.of.loaded_max:
        return MadePlace(load_ms, load_ms)
    warm = 2 * load_ms
    last = ""
    for name in adapters.droppable(now_ns=now_ns, alone=alone):
        if not adapters.warm(name, now_ns=now_ns):
            return MadePlace(load_ms, load_ms, name)
        if copies[name] > 1:
            return MadePlace(warm if again else load_ms, load_ms, name)
        last = last or name
    return MadePlace(warm, load_ms, last) if last and not again else None


def _loaded(endpoint: Endpoint) -> Sequence[str]:
    return endpoint.adapters.names if endpoint.adapters is not None else ()


def _full(endpoint: Endpoint) -> bool:
    return endpoint.load_permits + endpoint.standby >= endpoint.max_concurrent
