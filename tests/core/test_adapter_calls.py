"""Which adapter is loaded where by a call: at once where nobody has it, a copy when requests have waited."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.adapter_calls import AdapterCall, WantedAdapter, adapter_calls
from extproc.core.adapters import WARM_NS, LoadedAdapters, PoolAdapters
from extproc.core.endpoint import Endpoint

NAMES = ("chat", "code", "law", "med")
OF = PoolAdapters(names=frozenset(NAMES), loaded_max=2, load_ms=500.0, by_call=True)
MS = 1_000_000


def replica(number: int, *names: str, at_ns: int = 0, permits: int = 8) -> Endpoint:
    """A replica that has these, used in this order."""
    endpoint = Endpoint(address=f"10.0.0.{number}:80", pool="p", max_concurrent=permits)
    endpoint.adapters = LoadedAdapters(OF)
    for name in names:
        endpoint.adapters.came(name, now_ns=at_ns)
    return endpoint


def called(
    replicas: list[Endpoint],
    *,
    now_ns: int = 0,
    busy: Collection[str] = (),
    coming: Collection[str] = (),
    rests: Collection[str] = (),
    alone: bool = True,
    only: str = "",
    **waited_ms: float,
) -> list[AdapterCall]:
    wanted = {
        name: WantedAdapter(ms, lambda each: not only or each.address == only)
        for name, ms in waited_ms.items()
    }
    return adapter_calls(
        replicas,
        wanted,
        busy=busy,
        coming=coming,
        rests=lambda address, name: address in rests,
        now_ns=now_ns,
        alone=alone,
    )


def test_one_that_nobody_has_is_loaded_at_once_where_a_place_is_free() -> None:
    """Nothing is dropped for it elsewhere."""
    full, empty = replica(1, "chat", "code"), replica(2)
    assert called([full, empty], law=0.0) == [AdapterCall(empty.address, "law")]


def test_a_cold_one_goes_and_one_in_use_never() -> None:
    """The least recently used without a request; of all in use none, however long somebody waits."""
    one = replica(1, "chat", "code")
    later = WARM_NS + 1
    assert called([one], now_ns=later, law=0.0) == [AdapterCall(one.address, "law", "chat")]
    assert one.adapters is not None
    one.adapters.begins("chat", now_ns=later)
    assert called([one], now_ns=later, law=0.0) == [AdapterCall(one.address, "law", "code")]
    one.adapters.begins("code", now_ns=later)
    assert called([one], now_ns=later, law=1e9) == []
    one.adapters.ends("code", now_ns=later)
    one.adapters.heard(["code"], now_ns=later)
    assert called([one], now_ns=later, law=1e9) == [], "somebody else's request runs there, by its agent"


def test_a_warm_one_goes_when_a_request_has_waited_for_its_load() -> None:
    """So adapters that are all asked for do not chase each other at each request."""
    one = replica(1, "chat", "code")
    assert called([one], law=499.0) == []
    assert called([one], law=500.0) == [AdapterCall(one.address, "law", "chat")]


def test_a_copy_is_loaded_when_its_home_is_full_for_as_long_as_a_load_takes() -> None:
    """And never while the home would begin the request sooner."""
    home, other = replica(1, "law", permits=1), replica(2)
    assert called([home, other], law=10_000.0) == [], (
        "the home has room: who waits there waits for another reason"
    )
    home.permits = 1
    assert called([home, other], law=499.0) == []
    assert called([home, other], law=500.0) == [AdapterCall(other.address, "law")]
    other.permits = other.max_concurrent
    assert called([home, other], law=10_000.0) == [], "a copy where there is no room helps nobody"


def test_where_others_wait_too_a_copy_waits_for_them() -> None:
    """Who waits where all are full gains nothing by a load: it goes where nobody waits, or once it has waited
    longer than they by the load."""
    home, other = replica(1, "law", permits=1), replica(2, "chat")
    home.permits = 1
    assert called([home, other], law=600.0, chat=200.0) == []
    assert called([home, other], law=700.0, chat=200.0) == [AdapterCall(other.address, "law")]
    third = replica(3, "code")
    assert called([home, other, third], law=600.0, chat=200.0) == [AdapterCall(third.address, "law")]
    assert called([other, third], med=0.0, chat=200.0) == [AdapterCall(third.address, "med")]
    elsewhere = WantedAdapter(200.0, lambda each: each is not other)
    calls = adapter_calls(
        [home, other],
        {"law": WantedAdapter(500.0, lambda _: True), "chat": elsewhere},
        busy=(),
        coming=(),
        rests=lambda _address, _name: False,
        now_ns=0,
    )
    assert calls == [AdapterCall(other.address, "law")], "those who may not go there do not count"


def test_a_spare_copy_goes_at_once_and_the_last_one_stays() -> None:
    """Of two replicas that have the same two, two others can take a place each: both of the first stay."""
    one, two = replica(1, "chat", "code"), replica(2, "chat", "code")
    calls = called([one, two], law=1.0, med=0.0)
    assert calls == [AdapterCall(one.address, "law", "chat"), AdapterCall(two.address, "med", "code")]


def test_no_copy_takes_the_last_place_of_another() -> None:
    """However long its requests wait; once that one is cold, it goes."""
    home, other = replica(1, "law", "med", permits=1), replica(2, "chat", "code")
    home.permits = 1
    assert called([home, other], law=1e6) == []
    assert called([home, other], now_ns=WARM_NS + 1, law=500.0) == [AdapterCall(other.address, "law", "chat")]


def test_a_copy_that_drops_a_warm_copy_waits_twice_as_long() -> None:
    """Two hot adapters do not take each other's place in turn."""
    home, other, third = replica(1, "law", permits=1), replica(2, "chat", "code"), replica(3, "chat", "code")
    home.permits, third.permits = 1, 8
    assert called([home, other, third], law=999.0) == []
    assert called([home, other, third], law=1_000.0) == [AdapterCall(other.address, "law", "chat")]


def test_one_load_of_an_adapter_and_one_call_at_a_replica_at_once() -> None:
    """Who has waited longest goes first; what is being loaded is waited for."""
    one, two = replica(1), replica(2)
    assert called([one, two], law=0.0, coming=["law"]) == []
    assert called([one, two], busy=[one.address], law=0.0) == [AdapterCall(two.address, "law")]
    calls = called([one, two], chat=1.0, code=3.0, med=2.0)
    assert [each.load for each in calls] == ["code", "med"]
    assert {each.address for each in calls} == {one.address, two.address}


def test_where_a_load_failed_or_a_request_may_not_go_none_is_called() -> None:
    """Another replica is; one that is not ready is no place, and has nothing."""
    one, two = replica(1), replica(2)
    assert called([one, two], rests=[one.address], law=0.0) == [AdapterCall(two.address, "law")]
    assert called([one, two], only=two.address, law=0.0) == [AdapterCall(two.address, "law")]
    home = replica(3, "law")
    home.ready = False
    assert called([home, two], law=0.0) == [AdapterCall(two.address, "law")]


def test_beside_other_services_only_cold_ones_go() -> None:
    """Their requests are not known here: what was used a moment ago may be in use there."""
    one = replica(1, "chat", "code")
    assert called([one], alone=False, law=1e6) == []
    assert called([one], alone=False, now_ns=WARM_NS + 1, law=0.0) == [
        AdapterCall(one.address, "law", "chat")
    ]


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_however_requests_come_places_hold_and_nothing_in_use_goes(seed: int, count: int) -> None:
    """Random demand: never more than the places, one call a replica, no adapter with a request is dropped."""
    rng = Random(seed)
    replicas, running, now_ns = [replica(i) for i in range(count)], [], 0
    for _ in range(60):
        now_ns += rng.randrange(2_000) * MS
        waited = {name: float(rng.randrange(3_000)) for name in rng.sample(NAMES, rng.randrange(5))}
        calls = called(replicas, now_ns=now_ns, **waited)
        assert len({each.address for each in calls}) == len(calls)
        assert len({each.load for each in calls}) == len(calls)
        for call in calls:
            adapters = next(each for each in replicas if each.address == call.address).adapters
            assert adapters is not None
            assert call.load not in adapters
            if call.unload:
                assert (adapters, call.unload) not in [(of, name) for of, name in running]
                adapters.goes(call.unload)
            adapters.came(call.load, now_ns=now_ns)
            assert len(adapters) <= OF.loaded_max
        for each in replicas:
            assert each.adapters is not None
            if each.adapters.names and rng.random() < 0.5:
                name = rng.choice(each.adapters.names)
                each.adapters.begins(name, now_ns=now_ns)
                running.append((each.adapters, name))
        while running and rng.random() < 0.6:
            adapters, name = running.pop(rng.randrange(len(running)))
            adapters.ends(name, now_ns=now_ns)
