"""KV events, as an agent's reports tell of them, in the index of the endpoint that it speaks for."""

from __future__ import annotations

from typing import Any

from extproc.core.adapters import PoolAdapters
from extproc.core.diagnosis import STALE_NS
from extproc.core.fleet import Fleet, Member, Pool, PoolSpec
from extproc.core.prefix import chain_ids, of_adapter
from extproc.core.reports import KvReport, ReplicaReport
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.sizing import predict

ONE, TWO = "10.0.0.1:80", "10.0.0.2:80"


def scene() -> tuple[Fleet, Pool]:
    fleet = Fleet([PoolSpec(name="p", models=("m",), strategy="steer", endpoints=(Member(ONE), Member(TWO)))])
    pool = fleet.pools["p"]
    for address in (ONE, TWO):
        pool.prefixes.insert(address, (1, 2, 3, 4), capacity_blocks=100)
        pool.coming.insert(address, (1, 2, 3, 4), capacity_blocks=100)
    return fleet, pool


def says(fleet: Fleet, **kv: Any) -> None:
    told = KvReport(**{"complete": True, "cached_tokens": 100_000, **kv})
    fleet.heard(ReplicaReport(address=ONE, pool="p", boot_id=7, kv=told), now_ns=1)


def test_digests_go_and_come_at_the_endpoint_that_speaks() -> None:
    """What an engine dropped is not matched there any more, what it stored again is; there alone."""
    fleet, pool = scene()
    says(fleet, removed=(3, 4, 99))
    assert pool.prefixes.match((1, 2, 3, 4)) == {ONE: 2, TWO: 4}
    says(fleet, stored=(3, 4))
    assert pool.prefixes.match((1, 2, 3, 4)) == {ONE: 4, TWO: 4}
    endpoint = fleet.endpoint("p", ONE)
    assert endpoint is not None
    assert endpoint.cache.source == "events"
    assert (endpoint.cache.corrections["events_removed"], endpoint.cache.corrections["events_stored"]) == (
        2,
        2,
    )


def test_digests_of_nobodys_prompt_do_not_enter_the_index() -> None:
    """An agent cannot fill the index with what never came through here."""
    fleet, pool = scene()
    says(fleet, stored=tuple(range(1000, 2000)))
    assert pool.prefixes.blocks(ONE) == 4


def test_a_cleared_cache_empties_both_indexes() -> None:
    """AllBlocksCleared, and a publisher that began anew: nothing is held, and nothing is coming."""
    fleet, pool = scene()
    says(fleet, clears=0)
    says(fleet, clears=1)
    assert pool.prefixes.match((1, 2)) == pool.coming.match((1, 2)) == {TWO: 2}


def test_a_cache_that_drops_blocks_is_as_large_as_it_is_full() -> None:
    """What is held while blocks leave is what it can hold; without events the size is nobody's word."""
    fleet, pool = scene()
    says(fleet, removed_blocks=0, cached_tokens=128)
    assert pool.prefixes.blocks(ONE) == 4
    says(fleet, removed_blocks=1, cached_tokens=128)
    assert pool.prefixes.blocks(ONE) == 2
    endpoint = fleet.endpoint("p", ONE)
    assert endpoint is not None
    assert endpoint.cache_tokens == 128
    fleet.heard(ReplicaReport(address=ONE, pool="p", boot_id=7), now_ns=2)
    assert endpoint.cache.source == "guessed"


def test_a_silent_agent_leaves_usage_to_speak() -> None:
    """Events that nobody hears any more are no knowledge; when the agent is back they are again."""
    fleet, _ = scene()
    says(fleet)
    endpoint = fleet.endpoint("p", ONE)
    assert endpoint is not None
    assert endpoint.cache.source == "events"
    fleet.step(now_ns=STALE_NS + 10)
    assert (endpoint.stale, endpoint.cache.source) == (True, "guessed")
    says(fleet)
    assert endpoint.cache.source == "events"


def test_an_incomplete_set_does_not_tell_the_size() -> None:
    """After events that were lost nobody knows how much is held: usage and guesses speak again."""
    fleet, pool = scene()
    says(fleet, complete=False, gaps=1, cached_tokens=0)
    says(fleet, complete=False, gaps=1, cached_tokens=0, removed_blocks=5)
    assert pool.prefixes.blocks(ONE) == 4
    endpoint = fleet.endpoint("p", ONE)
    assert endpoint is not None
    assert endpoint.cache.source == "guessed"


def test_an_adapters_digests_are_apart_from_the_bases() -> None:
    """Blocks that a replica stored under an adapter count for requests to that adapter alone."""
    adapters = PoolAdapters(names=frozenset({"law"}), loaded_max=1, load_ms=1.0)
    spec = PoolSpec(
        name="p",
        models=("m", "law"),
        strategy="steer",
        endpoints=(Member(ONE), Member(TWO)),
        adapters=adapters,
    )
    fleet = Fleet([spec])
    pool = fleet.pools["p"]
    ids = b"".join(i.to_bytes(4, "little") for i in range(256))
    asked = Request(kind=RouteKind.COMPLETION, dialect=Dialect.OPENAI, prompt_tokens=256, prompt_ids=ids)
    base, law = (predict(asked, pool, "t", model).prefix for model in ("m", "law"))
    assert (base, law) == (chain_ids(ids), of_adapter(chain_ids(ids), "law"))
    pool.prefixes.insert(TWO, base, capacity_blocks=100)
    pool.prefixes.insert(TWO, law, capacity_blocks=100)
    says(fleet, stored=law)
    assert pool.prefixes.match(law) == {ONE: 4, TWO: 4}
    assert pool.prefixes.match(base) == {TWO: 4}
