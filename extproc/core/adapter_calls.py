"""Which LoRA adapter is to be loaded where, of engines that load those alone that they are told of.

Owns the choice; the calls are made by the service (service/adapters.py). Pure.

An adapter that nobody has is loaded at once where a place is free or a cold one can go. A copy elsewhere is
loaded when requests have waited for those that have it as long as its load takes (to rent until that has cost
as much as to buy: at most twice what who knows the future would pay). A load that drops one which was used a
moment ago costs twice, so that adapters do not chase each other. None with a request is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import start_ms


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
    for name, want in sorted(wanted.items(), key=lambda item: -item[1].waited_ms):
        if name in coming:
            continue
        may = [each for each in endpoints if each.ready and each.adapters is not None and want.allows(each)]
        call = _one(may, name, want.waited_ms, taken=taken, rests=rests, now_ns=now_ns, alone=alone)
        if call is not None:
            taken.add(call.address)
            found.append(call)
    return found


def _one(
    may: Sequence[Endpoint],
    name: str,
    waited_ms: float,
    *,
    taken: Collection[str],
    rests: Callable[[str, str], bool],
    now_ns: int,
    alone: bool,
) -> AdapterCall | None:
    best: tuple[float, int, str] | None = None
    costs: dict[str, float] = {}
    having = []
    for each in may:
        adapters = each.adapters
        assert adapters is not None, each
        if name in adapters:
            having.append(each)
            continue
        if each.address in taken or _full(each) or rests(each.address, name):
            continue
        cost = adapters.load_cost_ms(now_ns=now_ns, alone=alone)
        if cost is not None:
            costs[each.address] = cost
            place = (start_ms(each) + cost, len(adapters), each.address)
            best = place if best is None else min(best, place)
    if best is None:
        return None
    soonest_ms, _, address = best
    open_starts = [start_ms(each) for each in having if not _full(each)]
    if open_starts and min(open_starts) <= soonest_ms:
        return None
    chosen = next(each for each in may if each.address == address).adapters
    assert chosen is not None
    if waited_ms < costs[address] - (0.0 if having else chosen.of.load_ms):
        return None
    room = len(chosen) < chosen.of.loaded_max
    return AdapterCall(address, name, "" if room else chosen.victim(now_ns=now_ns, alone=alone) or "")


def _full(endpoint: Endpoint) -> bool:
    return endpoint.load_permits + endpoint.standby >= endpoint.max_concurrent
