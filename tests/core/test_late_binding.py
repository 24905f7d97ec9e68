"""steer: what is placed, what waits, and what a first token, an end or a tick releases."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.fleet import Member, PoolSpec
from extproc.core.forecast import FREE
from extproc.core.outcome import End, Hold, Outcome, Reject, Reservation, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ClassSpec, Policy
from extproc.core.tenant import Tenant
from tests.stand.fleets import one_at_a_time
from tests.stand.schedulers import make_scheduler

MS = 1_000_000
S = 1_000_000_000
ACME, GLOBEX = Tenant(name="acme"), Tenant(name="globex")


class Scene:
    """A scheduler over a few replicas, and what it has released."""

    def __init__(self, replicas: int = 1, *, engine: str = "tgi", **member: Any) -> None:
        spec = PoolSpec(
            name="p",
            models=("m",),
            strategy="steer",
            engine=engine,
            endpoints=tuple(Member(f"10.0.0.{i + 1}:80", **member) for i in range(replicas)),
        )
        self.scheduler = make_scheduler(spec, policy=Policy(classes=(ClassSpec(),)))
        one_at_a_time(*self.scheduler.fleet.endpoints)
        self.released: list[tuple[str, Routed | Reject]] = []
        self.scheduler.dispatcher.on_release = lambda name, decision: self.released.append((name, decision))
        self.now_ns = 0

    def ask(self, tokens: int, tenant: Tenant = ACME, **more: Any) -> Routed | Reject | Hold:
        request = Request(
            kind=RouteKind.CHAT,
            dialect=Dialect.OPENAI,
            stream=True,
            prompt_tokens=tokens,
            max_new_tokens=200,
            **more,
        )
        decision = self.scheduler.admit(request, tenant, now_ns=self.now_ns)
        assert isinstance(decision, Routed | Reject | Hold)
        return decision

    def routed(self, tokens: int, **more: Any) -> Reservation:
        decision = self.ask(tokens, **more)
        assert isinstance(decision, Routed), decision
        return decision.reservation

    def ends(self, reservation: Reservation, output: int = 100, **more: Any) -> None:
        outcome = Outcome(
            reservation=reservation,
            final=True,
            status=200,
            served_by=reservation.address,
            attempts=1,
            duration_ns=S,
            prompt_tokens=reservation.input_tokens,
            output_tokens=output,
            **more,
        )
        self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)


def test_a_replicas_own_queue_is_kept_about_one_deep() -> None:
    """A second long prompt waits here until the first one's token has come; a short one does not wait."""
    scene = Scene()
    first = scene.routed(3000)
    held = scene.ask(2000)
    assert isinstance(held, Hold)
    scene.now_ns = 200 * MS
    assert scene.scheduler.settlement.first_token(first.id, now_ns=scene.now_ns)
    ((name, decision),) = scene.released
    assert name == held.id
    assert isinstance(decision, Routed)
    assert decision.reservation.held_ms == 200.0


def test_short_prompts_share_a_queue_up_to_its_depth() -> None:
    """Prompts go along while together they are within `queue_tokens`."""
    scene = Scene()
    assert [isinstance(scene.ask(400), Routed) for _ in range(3)] == [True, True, False]


def test_law_6_nobody_waits_while_a_replica_would_start_it() -> None:
    """With a second replica idle the second long prompt goes there."""
    scene = Scene(2)
    assert {scene.routed(3000).address, scene.routed(3000).address} == {"10.0.0.1:80", "10.0.0.2:80"}


def test_the_shortest_prefill_that_can_be_in_time_goes_first() -> None:
    """Of two that wait, the shorter prompt, though it came later."""
    scene = Scene()
    first = scene.routed(3000)
    long, short = scene.ask(3500), scene.ask(1200)
    scene.now_ns = 50 * MS
    scene.scheduler.settlement.first_token(first.id, now_ns=scene.now_ns)
    assert isinstance(short, Hold)
    assert isinstance(long, Hold)
    assert [name for name, _ in scene.released] == [short.id]


def test_the_guard_keeps_a_running_streams_tokens_in_time() -> None:
    """A prefill longer than a stream can spare waits until the stream is over."""
    scene = Scene()
    running = scene.routed(100)
    scene.scheduler.settlement.first_token(running.id, now_ns=0)
    # A stream of 200 tokens at most can spare .5·(100 − 12)·200 = 8.8 s; 100,000 tokens take longer.
    held = scene.ask(100_000)
    assert isinstance(held, Hold)
    scene.now_ns = S
    scene.ends(running)
    assert [name for name, _ in scene.released] == [held.id]


@pytest.mark.parametrize(("tight", "yields"), [(1, True), (2, False)])
def test_the_guard_yields_to_who_would_be_late_and_can_be_in_time(*, tight: int, yields: bool) -> None:
    """After a quarter of its target a prompt goes beside one stream without time to spare, not beside two.

    Held until streams end, prompts were late while no replica prefilled anything. One that is late anyway
    spoils nobody's stream.
    """
    scene = Scene()
    running = [scene.routed(100)]
    scene.scheduler.settlement.first_token(running[0].id, now_ns=0)
    for _ in range(tight - 1):
        running.append(scene.routed(100))
        scene.scheduler.settlement.first_token(running[-1].id, now_ns=0)
    (endpoint,) = scene.scheduler.fleet.endpoints
    step_ms = endpoint.speed.step_ms(tight, 200 * tight)
    # What others' prefills have cost their streams: 10 ms are left to spare.
    endpoint.load.prefilled_ms += endpoint.load.tightest_ms(step_ms, now_ns=0) - 10.0
    endpoint.load.leave("", endpoint.load.enter(FREE, 1, now_ns=0), now_ns=0)
    held, hopeless = scene.ask(3000), scene.ask(100_000)
    assert isinstance(held, Hold)
    assert isinstance(hopeless, Hold)
    scene.now_ns = 240 * MS
    scene.scheduler.step(now_ns=scene.now_ns)
    assert not scene.released
    scene.now_ns = 260 * MS
    scene.scheduler.step(now_ns=scene.now_ns)
    assert [name for name, _ in scene.released] == [held.id] * yields
    if not yields:
        return
    scene.now_ns = 1300 * MS
    ((_, decision),) = scene.released
    assert isinstance(decision, Routed)
    scene.scheduler.settlement.first_token(decision.reservation.id, now_ns=scene.now_ns)
    scene.scheduler.step(now_ns=scene.now_ns)
    assert [name for name, _ in scene.released] == [held.id]


def test_memory_is_promised_once() -> None:
    """What would not fit into the KV cache beside what runs waits; on an empty replica it may go."""
    scene = Scene(kv_capacity_tokens=3000)
    first = scene.routed(1000)
    scene.scheduler.settlement.first_token(first.id, now_ns=0)
    second = scene.ask(1900)
    assert isinstance(second, Hold), "1000 + 199 + 1900 + 199 > .98·3000"
    scene.now_ns = S
    scene.ends(first)
    assert [name for name, _ in scene.released] == [second.id]


def test_a_first_token_that_nobody_hears_of_wedges_nothing() -> None:
    """Some time after its prediction a request counts as running, and the next is placed."""
    scene = Scene()
    scene.routed(3000)
    held = scene.ask(2000)
    assert isinstance(held, Hold)
    scene.now_ns = 100 * MS
    scene.scheduler.step(now_ns=scene.now_ns)
    assert not scene.released
    scene.now_ns = S
    scene.scheduler.step(now_ns=scene.now_ns)
    assert [name for name, _ in scene.released] == [held.id]
    assert scene.scheduler.counts["first_token.overdue"] == 1


def test_a_refusal_inside_a_stream_makes_its_replica_suspect() -> None:
    """The next goes elsewhere; nothing is learnt of speed from a refusal."""
    scene = Scene(2)
    refused = scene.routed(100)
    assert scene.scheduler.settlement.first_token(refused.id, now_ns=0, refused=True)
    scene.ends(refused, end=End.REFUSED, refused=True)
    assert {scene.routed(10).address for _ in range(4)} == {"10.0.0.2:80"} - {refused.address} or {
        "10.0.0.1:80"
    } - {refused.address}
    assert scene.scheduler.counts["refused_in_stream"] == 1


def test_an_unknown_first_token_is_nobodys() -> None:
    """It is said so, and changes nothing."""
    assert not Scene().scheduler.settlement.first_token("elsewhere-1", now_ns=0)


@pytest.mark.parametrize(("engine", "at_prefill"), [("tgi", False), ("vllm", True), ("sglang", True)])
def test_the_index_follows_the_engine(engine: str, at_prefill: bool) -> None:
    """TGI caches a prompt when its request ends; vLLM and SGLang when it is prefilled."""
    scene = Scene(engine=engine)
    prefix = tuple(range(1, 11))
    reservation = scene.routed(1000, prefix=prefix, prefix_block_tokens=64.0)
    pool = scene.scheduler.fleet.pools["p"]
    scene.scheduler.settlement.first_token(reservation.id, now_ns=50 * MS)
    assert bool(pool.prefixes.match(prefix)) is at_prefill
    scene.now_ns = S
    scene.ends(reservation)
    assert pool.prefixes.match(prefix) == {reservation.address: 10}


def test_a_prompt_goes_where_its_beginning_is_cached() -> None:
    """What is cached there need not be computed, so its first token comes soonest there."""
    scene = Scene(4)
    prefix = tuple(range(1, 31))
    first = scene.routed(2000, prefix=prefix, prefix_block_tokens=64.0)
    scene.now_ns = S
    scene.ends(first)
    again = scene.routed(2000, prefix=prefix, prefix_block_tokens=64.0)
    assert (again.address, again.cached_tokens) == (first.address, 1920)


def test_who_would_gain_from_a_cache_lets_the_next_go_first() -> None:
    """With others waiting, a prompt waits for the replica that holds it rather than be computed again."""
    scene = Scene(2)
    prefix = tuple(range(1, 47))
    warm = scene.routed(3000, prefix=prefix, prefix_block_tokens=64.0)
    scene.now_ns = S
    scene.ends(warm)
    cold = "10.0.0.2:80" if warm.address == "10.0.0.1:80" else "10.0.0.1:80"
    # 10,000 tokens take 0.9 s: more than joining that queue is worth, and still within the second.
    busy = [scene.routed(10_000, prefix=(7 + i,), prefix_block_tokens=64.0) for i in range(2)]
    mine = scene.ask(3000, prefix=prefix, prefix_block_tokens=64.0)
    other = scene.ask(3500, tenant=GLOBEX)
    assert isinstance(mine, Hold)
    assert isinstance(other, Hold)
    freed = next(each for each in busy if each.address == cold)
    scene.now_ns += 100 * MS
    scene.scheduler.settlement.first_token(freed.id, now_ns=scene.now_ns)
    assert [name for name, _ in scene.released] == [other.id]


def test_a_prompt_joins_a_deeper_queue_where_it_is_cached() -> None:
    """The wait there is shorter than computing, and keeping, its prefix a second time."""
    scene = Scene(2)
    prefix = tuple(range(1, 47))
    warm = scene.routed(3000, prefix=prefix, prefix_block_tokens=64.0)
    scene.now_ns = S
    scene.ends(warm)
    for i in range(2):
        scene.routed(3000, prefix=(7 + i,), prefix_block_tokens=64.0)
    assert scene.routed(3000, prefix=prefix, prefix_block_tokens=64.0).address == warm.address


def test_new_prefixes_find_homes_apart() -> None:
    """Prompts that begin differently go to replicas that were given fewest prefixes so far."""
    scene = Scene(4)
    homes = []
    for i in range(8):
        first = scene.routed(1000, prefix=(i * 100 + 1, i * 100 + 2), prefix_block_tokens=500.0)
        scene.now_ns += S
        scene.ends(first)
        homes.append(first.address)
    assert sorted(homes.count(address) for address in set(homes)) == [2, 2, 2, 2]


def test_speed_is_learnt_from_first_tokens() -> None:
    """A replica three times slower than expected is known for it after a few requests."""
    scene = Scene(2)
    slow = "10.0.0.2:80"
    for _ in range(24):
        reservation = scene.routed(1000)
        factor = 3 if reservation.address == slow else 1
        scene.now_ns += int(factor * 77 * MS)
        scene.scheduler.settlement.first_token(reservation.id, now_ns=scene.now_ns)
        scene.now_ns += int(factor * 12 * 99 * MS)
        scene.ends(reservation)
    speeds = {e.address: e.speed.prefill_ms(1000) for e in scene.scheduler.fleet.endpoints}
    assert speeds[slow] > 2 * speeds["10.0.0.1:80"]
    assert scene.scheduler.settlement.feedback.ttft.count > 20
