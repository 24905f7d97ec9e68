from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from extproc.core.load import Plan
from extproc.core.outcome import End, Hold, Reject, Routed
from extproc.core.reports import GpuReport, KvReport, ReplicaReport
from extproc.core.request import RouteKind
from extproc.core.series import Histogram
from extproc.observe.metrics import counting
from extproc.observe.metrics.labels import OTHER
from extproc.observe.metrics.samples import GPUS_MAX, families
from extproc.observe.metrics.table import TABLE

MS, S = 1_000_000, 1_000_000_000
Make = Callable[..., Any]


def test_a_request_is_counted_with_what_it_was_charged(scene: Make) -> None:
    """Tokens, money and replica time are those of the scheduler's own books."""
    at = scene()
    at.one(prompt_tokens=100, output_tokens=50, duration_ns=2 * S)
    seen = at.series()
    key = ("acme", "chat")
    assert seen["requests_total"] == {
        (*key, "standard", "ok"): 1,
        (*key, "standard", "refused"): 0,
        (*key, "standard", "error"): 0,
        (*key, "standard", "client_gone"): 0,
    }
    assert seen["tokens_total"] == {(*key, "input"): 100, (*key, "output"): 50}
    # 100 × 10 + 50 × 30 for a million.
    assert seen["cost_total"][key] == pytest.approx(2_500 / 1e6)
    assert seen["gpu_seconds_total"][key] == pytest.approx(2.0)
    assert seen["decisions_total"] == {("chat", "least_request", "no"): 1}


@pytest.mark.parametrize(
    ("facts", "outcome", "met"),
    [
        ({}, "ok", "yes"),
        ({"ttft_ns": 1_100 * MS, "duration_ns": 2 * S}, "ok", "no"),  # its first token is late: 1.1 s > 1 s
        ({"duration_ns": 7 * S}, "ok", "no"),  # 6.95 s for 49 further tokens > 0.1 s each
        ({"end": End.ERROR, "status": 503}, "error", "no"),
        ({"end": End.REFUSED, "refused": True}, "refused", "no"),  # overloaded, inside a 200
        ({"end": End.REFUSED, "status": 429, "ttft_ns": None}, "refused", "no"),
        ({"end": End.REFUSED, "status": 422, "ttft_ns": None}, "refused", None),
        ({"end": End.CLIENT_GONE}, "client_gone", "yes"),  # its first token had come in time
        ({"end": End.CLIENT_GONE, "ttft_ns": None, "duration_ns": 900 * MS}, "client_gone", None),
        ({"end": End.CLIENT_GONE, "ttft_ns": None, "duration_ns": 1_100 * MS}, "client_gone", "no"),
        ({"ttft_ns": None, "duration_ns": 5 * S}, "ok", "yes"),  # whole: within 1 s + 49 × 0.1 s
        ({"ttft_ns": None, "duration_ns": 7 * S}, "ok", "no"),
    ],
)
def test_targets_are_met_or_not(scene: Make, facts: dict[str, Any], outcome: str, met: str | None) -> None:
    """By the class's targets; clients' own mistakes, and clients that left early, are neither."""
    at = scene()
    at.one(**facts)
    seen = at.series()
    assert seen["requests_total"]["acme", "chat", "standard", outcome] == 1
    assert sum(seen["requests_total"].values()) == 1
    expected = {("acme", "standard", each): float(each == met) for each in ("yes", "no")}
    assert seen["slo_requests_total"] == expected


def test_the_tenants_class_is_what_it_is_judged_by(scene: Make) -> None:
    """What is in time for standard is late for premium."""
    at = scene("acme", "prime")
    for tenant in ("acme", "prime"):
        at.one(tenant, ttft_ns=500 * MS, duration_ns=S)
    slo = at.series()["slo_requests_total"]
    assert slo["acme", "standard", "yes"] == slo["prime", "premium", "no"] == 1


def test_times_are_those_of_the_record(scene: Make) -> None:
    """TTFT, (end − first)/(n − 1) and the whole time land in their buckets."""
    at = scene()
    at.one(ttft_ns=50 * MS, duration_ns=540 * MS, output_tokens=50)
    ((key, times),) = at.counting.read().times
    assert key == ("chat", "standard")
    assert {name: total for name, (_, total) in times.items()} == pytest.approx(
        {"ttft_seconds": 0.05, "tpot_seconds": 0.01, "request_seconds": 0.54, "hold_seconds": 0.0}
    )
    spec = next(spec for spec in TABLE if spec.name == "tpot_seconds")
    counts, _ = times["tpot_seconds"]
    assert counts[spec.buckets.index(0.01)] == 1, "a value on the bound is below it"


def test_only_what_this_service_decided_counts(scene: Make) -> None:
    """Every service hears of every end: their sums would be several times too high."""
    at = scene()
    at.one(here=False)
    seen = at.series()
    assert seen["requests_total"] == seen["tokens_total"] == seen["slo_requests_total"] == {}


def test_free_requests_have_no_targets(scene: Make) -> None:
    """A token count or an engine's info is a request, but there is nothing to be in time with."""
    at = scene()
    at.end(at.reservation(kind=RouteKind.TOKENIZE), ttft_ns=None, output_tokens=None)
    seen = at.series()
    assert seen["requests_total"]["acme", "chat", "standard", "ok"] == 1
    assert sum(seen["slo_requests_total"].values()) == 0
    assert sum(seen["request_seconds"].values()) == 0


def test_a_held_request_is_seen_and_its_wait_counted(scene: Make) -> None:
    """While it waits it is held; its hold ends where it is placed."""
    at = scene(permits=1)
    first = at.reservation()
    assert isinstance(at.admit(), Hold)
    seen = at.series()
    assert seen["held"] == {("chat", "standard"): 1}
    assert seen["tenant_held"] == {("acme",): 1}
    assert seen["in_flight"] == {("chat",): 1, ("code",): 0}
    assert seen["tenant_in_flight"] == {("acme",): 1}
    at.now_ns += 300 * MS
    at.end(first)
    ((_, decision),) = at.released
    assert isinstance(decision, Routed)
    assert at.series()["held"] == {("chat", "standard"): 0}
    ((_, times),) = at.counting.read().times
    assert times["hold_seconds"][1] == pytest.approx(0.3)
    assert sum(times["hold_seconds"][0]) == 2


def test_what_is_shed_missed_its_targets(scene: Make) -> None:
    """A refusal for want of room is one of us, with the code, and its whole wait is a hold."""
    at = scene("acme", "prime", permits=1)
    at.reservation()
    assert isinstance(at.admit(), Hold)
    assert isinstance(at.admit("prime"), Reject), "premium does not wait"
    at.now_ns += 6 * S
    at.scheduler.dispatcher.shed(now_ns=at.now_ns)
    seen = at.series()
    assert seen["refusals_total"] == {("acme", "overloaded"): 1, ("prime", "overloaded"): 1}
    assert seen["slo_requests_total"]["acme", "standard", "no"] == 1
    assert seen["slo_requests_total"]["prime", "premium", "no"] == 1
    waited = {key: times["hold_seconds"][1] for key, times in at.counting.read().times}
    assert waited["chat", "standard"] == pytest.approx(6.0)


def test_a_spent_quota_is_no_missed_target(scene: Make) -> None:
    """What a tenant may not ask for says nothing of how it is served."""
    at = scene(quota={"requests_per_minute": 1})
    at.one()
    assert isinstance(at.admit(), Reject)
    seen = at.series()
    assert seen["refusals_total"] == {("acme", "quota_exceeded"): 1}
    assert seen["slo_requests_total"]["acme", "standard", "no"] == 0
    assert seen["quota_used_ratio"] == {("acme", "requests_per_minute"): pytest.approx(1.0)}


def test_refusals_before_a_case_are_counted(scene: Make) -> None:
    """Strangers as nobody; for want of room a tenant's request has missed its targets."""
    at = scene()
    for tenant, status, code in (
        ("", 401, "invalid_api_key"),
        ("acme", 400, "bad_request"),
        ("acme", 429, "overloaded"),
        ("", 429, "too_many_attempts"),
    ):
        at.scheduler.turned_away(tenant, Reject(status=status, code=code, message=""), now_ns=at.now_ns)
    seen = at.series()
    assert seen["refusals_total"] == {
        ("(none)", "invalid_api_key"): 1,
        ("acme", "bad_request"): 1,
        ("acme", "overloaded"): 1,
        ("(none)", "too_many_attempts"): 1,
    }
    assert seen["slo_requests_total"] == {("acme", "standard", "yes"): 0, ("acme", "standard", "no"): 1}
    assert seen["events_total"]["rejected.overloaded",] == 1


def test_who_is_kept_out_for_what_it_sent_has_missed_no_target(scene: Make) -> None:
    """Too many refusals are their sender's doing, though the status is that of an overload."""
    at = scene()
    for code in ("too_many_refused", "too_many_attempts"):
        at.scheduler.turned_away("acme", Reject(status=429, code=code, message=""), now_ns=at.now_ns)
    assert at.series()["slo_requests_total"] == {}


def test_who_gives_up_on_a_late_first_token_has_missed_its_target(scene: Make) -> None:
    """A client that leaves the queue says something once its class's target has passed."""
    at = scene(permits=1)
    at.reservation()
    for waited_ms, missed in ((900, 0), (1_100, 1)):
        held = at.admit()
        assert isinstance(held, Hold)
        at.now_ns += waited_ms * MS
        at.scheduler.leave(held.id, now_ns=at.now_ns)
        assert at.series()["slo_requests_total"]["acme", "standard", "no"] == missed


def test_clients_that_leave_early_are_gone(scene: Make) -> None:
    """While held, and before the decision came to Envoy."""
    at = scene(permits=1)
    placed = at.reservation()
    held = at.admit()
    assert isinstance(held, Hold)
    at.now_ns += 100 * MS
    at.scheduler.leave(held.id, now_ns=at.now_ns)
    at.scheduler.cancel(placed.id, now_ns=at.now_ns)
    seen = at.series()
    assert seen["requests_total"]["acme", "chat", "standard", "client_gone"] == 2
    assert seen["events_total"]["cancelled",] == seen["events_total"]["held.left",] == 1


def test_endpoints_are_shown_as_their_agents_say(scene: Make) -> None:
    """Nothing is made up: where nobody speaks there is no series, and what is stale is left out."""
    at = scene()
    before = at.series()
    assert before["endpoint_ready"] == {("chat", "10.0.0.1:80"): 1, ("code", "10.0.0.2:80"): 1}
    assert before["endpoint_waiting"] == before["endpoint_stale"] == before["gpu_lost"] == {}
    cards = tuple(
        GpuReport(uuid=f"GPU-{i}", utilization_percent=40, power_w=250.5, lost=i == 1)
        for i in range(GPUS_MAX + 2)
    )
    report = ReplicaReport(
        address="10.0.0.1:80",
        pool="chat",
        waiting=0,
        running=3,
        kv_used_tokens=50,
        kv_capacity_tokens=200,
        gpus=cards,
        prefix_queried_tokens=1_000,
        prefix_hit_tokens=840,
        kv=KvReport(cached_tokens=64, complete=False, events=9, gaps=2, replays=3, unreadable=1),
    )
    at.scheduler.fleet.heard(report, now_ns=at.now_ns)
    seen = at.series()
    here = ("chat", "10.0.0.1:80")
    assert seen["endpoint_waiting"] == {here: 0}
    assert seen["endpoint_running"] == {here: 3}
    assert seen["endpoint_kv_utilization"] == {here: 0.25}
    assert seen["endpoint_stale"] == {here: 0}
    assert seen["endpoint_prefix_tokens_total"] == {(*here, "queried"): 1_000, (*here, "hit"): 840}
    assert seen["endpoint_kv_events_complete"] == {here: 0}
    events = {"events": 9, "unreadable": 1, "gaps": 2, "replays": 3, "clears": 0}
    assert seen["endpoint_kv_events_total"] == {(*here, what): count for what, count in events.items()}
    assert len(seen["gpu_lost"]) == GPUS_MAX
    assert seen["gpu_lost"]["10.0.0.1:80", "GPU-1"] == 1
    assert seen["gpu_utilization_ratio"]["10.0.0.1:80", "GPU-0"] == 0.4
    assert seen["gpu_power_watts"]["10.0.0.1:80", "GPU-0"] == 250.5
    assert seen["gpu_memory_used_bytes"] == {}
    at.now_ns += 60 * S
    at.scheduler.fleet.step(now_ns=at.now_ns)
    late = at.series()
    assert late["endpoint_stale"] == {here: 1}
    assert late["endpoint_running"] == late["gpu_lost"] == late["endpoint_kv_events_total"] == {}


def test_where_the_prefix_index_knows_a_cache_from_is_shown(scene: Make) -> None:
    """Guessed at first, then by usage, then by KV events; with what moved it and what it is taken to hold."""
    at = scene()
    here = ("chat", "10.0.0.1:80")
    first = at.series()
    assert first["endpoint_cache_source"][*here, "guessed"] == 1
    assert first["endpoint_cache_tokens"] == first["endpoint_cache_corrections_total"] == {}
    endpoint = at.scheduler.fleet.endpoint(*here)
    assert endpoint is not None
    endpoint.cache.usage(
        Plan(uncached_tokens=1_000, cached_tokens=0, prefill_ms=50.0, kv_tokens=1_100, output_tokens=100.0),
        900,
        capacity=2_000.0,
        held=500.0,
    )
    told = at.series()
    assert [key for key in told["endpoint_cache_source"] if key[1] == here[1]] == [(*here, "usage")]
    assert told["endpoint_cache_corrections_total"] == {(*here, "usage_found"): 1}
    kv = KvReport(cached_tokens=640, complete=True)
    for removed in (0, 1):
        said = ReplicaReport(
            address=here[1], pool=here[0], kv=msgspec.structs.replace(kv, removed_blocks=removed)
        )
        at.scheduler.fleet.heard(said, now_ns=at.now_ns)
    heard = at.series()
    assert heard["endpoint_cache_source"][*here, "events"] == 1
    assert heard["endpoint_cache_tokens"] == {here: 640}
    assert heard["endpoint_cache_corrections_total"][*here, "events_size"] == 1


def test_endpoints_beyond_the_bound_are_in_the_sums_alone(scene: Make) -> None:
    """Their requests and readiness count for their pool."""
    at = scene()
    at.reservation(model="c")
    seen = at.series(endpoints_max=1)
    assert list(seen["endpoint_ready"]) == [("chat", "10.0.0.1:80")]
    assert seen["in_flight"] == {("chat",): 0, ("code",): 1}
    assert seen["pool_endpoints"]["code", "yes"] == 1


def test_combinations_have_a_bound(scene: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it everything is counted as other, and nothing is lost."""
    monkeypatch.setattr(counting, "CELLS_MAX", 2)
    monkeypatch.setattr(counting, "REFUSALS_MAX", 2)
    names = [f"t{i}" for i in range(6)]
    at = scene(*names)
    for name in names:
        at.one(name)
        at.scheduler.turned_away(name, Reject(status=429, code="overloaded", message=""), now_ns=at.now_ns)
    seen = at.series()
    assert seen["requests_total"][OTHER, OTHER, OTHER, "ok"] == 4
    assert seen["refusals_total"] == {
        ("t0", "overloaded"): 1,
        ("t1", "overloaded"): 1,
        (OTHER, OTHER): 4,
    }
    assert seen["slo_requests_total"][OTHER, OTHER, "yes"] == 4
    assert sum(seen["slo_requests_total"].values()) == 12


def test_other_tenants_are_summed(scene: Make) -> None:
    """Their traffic, and what they have in flight."""
    at = scene("a", "b", "c", "d", tenants_max=2)
    for name in ("a", "b", "c", "d"):
        at.one(name)
        at.reservation(name)
    seen = at.series()
    # One place of two is for who comes first, the other is kept.
    assert seen["tenant_in_flight"] == {("a",): 1, (OTHER,): 3}
    assert seen["tokens_total"][OTHER, "chat", "output"] == 150


def test_alerts_and_the_predictions_errors_are_shown(scene: Make) -> None:
    """What fires is 1, what does not is 0; an error is none before the first prediction."""
    at = scene()
    assert at.series()["prediction_error_ratio"] == {}
    at.now_ns += S
    first = at.reservation()
    at.now_ns += 100 * MS
    at.end(first)
    seen = at.series(firing={"burn": True, "late": False})
    assert seen["alerts_firing"] == {("burn",): 1, ("late",): 0}
    assert set(seen["prediction_error_ratio"]) == {("ttft",), ("completion",)}


def test_decisions_and_lag_are_histograms(scene: Make) -> None:
    """In seconds; a clock that went back a little counts as 0."""
    at = scene()
    at.counting.decided(120_000, now_ns=at.now_ns)
    at.counting.lagged(0.003)
    at.counting.lagged(-0.0001)
    seen = at.snapshot()
    assert seen.counts.decision[1] == pytest.approx(0.00012)
    assert seen.counts.lag[1] == pytest.approx(0.003)
    assert at.series()["event_loop_lag_seconds"] == {(): 2}


def test_buckets_are_cumulative(scene: Make) -> None:
    """As Prometheus wants them: each holds what is below its bound, the last one everything."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.saw(value)
    assert histogram.read() == ([2, 1, 1], 12.0)
    at = scene()
    at.one()
    for spec, samples in families(at.snapshot()):
        counts = [value for ending, _, value in samples if ending == "_bucket"]
        if spec.name == "ttft_seconds":
            assert len(counts) == len(spec.buckets) + 1
            assert counts == sorted(counts)
            assert counts[-1] == 1
