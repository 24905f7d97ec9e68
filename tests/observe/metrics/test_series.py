"""Whatever happens: counters never go back, label values stay bounded, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from extproc.core.outcome import End, Hold, Reject, Routed
from extproc.observe.metrics import TABLE
from extproc.observe.metrics.samples import families
from tests.stand.examples import examples

NAMES = [f"t{i}" for i in range(12)] + ["prime", "other"]
ENDS = {"ok": End.OK, "error": End.ERROR, "client_gone": End.CLIENT_GONE, "refused": End.REFUSED}
STEPS = st.one_of(
    st.tuples(st.just("one"), st.sampled_from(NAMES), st.sampled_from(sorted(ENDS))),
    st.tuples(st.just("hold"), st.sampled_from(NAMES)),
    st.tuples(st.just("turned_away"), st.sampled_from(["", *NAMES])),
    st.tuples(st.just("leave")),
    st.tuples(st.just("shed")),
    st.tuples(st.just("bound"), st.integers(1, 8)),
    st.tuples(st.just("busy"), st.sampled_from(NAMES)),
)


def counters(at: Any) -> dict[tuple[str, ...], float]:
    """Every series of counters and histograms."""
    kinds = {spec.name: spec.kind for spec in TABLE}
    return {
        (spec.name, ending, *labels): value
        for spec, samples in families(at.snapshot())
        if kinds[spec.name] != "gauge"
        for ending, labels, value in samples
    }


@given(steps=st.lists(STEPS, max_size=25), tenants_max=st.integers(1, 8))
@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_series_keep_their_promises(
    scene: Callable[..., Any], steps: list[tuple[Any, ...]], tenants_max: int
) -> None:
    """After every step: no counter is lower, no label set is gone, the sums are what was sent."""
    at = scene(*NAMES, tenants_max=tenants_max, permits=2)
    sent: Counter[str] = Counter()
    held: list[str] = []
    most, before = tenants_max, counters(at)
    for step in steps:
        at.now_ns += 1_000_000
        match step:
            case ("one", name, end):
                decision = at.admit(name)
                if isinstance(decision, Routed):
                    at.end(decision.reservation, end=ENDS[end])
                    sent[end] += 1
                    sent["output"] += 50
                elif isinstance(decision, Reject):
                    sent["refusals"] += 1
                else:
                    held.append(decision.id)
            case ("busy", name):
                for _ in range(70):
                    at.scheduler.turned_away(
                        name, Reject(status=400, code="bad_request", message=""), now_ns=at.now_ns
                    )
                sent["refusals"] += 70
            case ("hold", name):
                decision = at.admit(name)
                held += [decision.id] if isinstance(decision, Hold) else []
                sent["refusals"] += isinstance(decision, Reject)
            case ("turned_away", name):
                at.scheduler.turned_away(
                    name, Reject(status=429, code="overloaded", message=""), now_ns=at.now_ns
                )
                sent["refusals"] += 1
            case ("leave",):
                waiting = [each for each in held if each in at.scheduler.dispatcher.queue]
                if waiting:
                    at.scheduler.leave(waiting[0], now_ns=at.now_ns)
                    sent["client_gone"] += 1
            case ("shed",):
                at.now_ns += 10_000_000_000
                at.scheduler.dispatcher.shed(now_ns=at.now_ns)
            case ("bound", bound):
                at.counting.apply(bound)
                most = max(most, bound)
        sent["refusals"] += sum(isinstance(decision, Reject) for _, decision in at.released)
        at.released.clear()
        after = counters(at)
        assert not [key for key, value in before.items() if after.get(key, -1.0) < value]
        before = after
    seen = at.series()
    for name in ("requests_total", "refusals_total", "tokens_total", "slo_requests_total"):
        assert len({labels[0] for labels in seen[name]} - {"other", "(none)"}) <= most
    for end in ENDS:
        assert sum(value for labels, value in seen["requests_total"].items() if labels[3] == end) == sent[end]
    assert sum(seen["refusals_total"].values()) == sent["refusals"]
    assert sum(v for labels, v in seen["tokens_total"].items() if labels[2] == "output") == sent["output"]
    assert sum(seen["tenant_in_flight"].values()) == len(at.scheduler.ledger)
    assert (
        sum(seen["tenant_held"].values()) == sum(seen["held"].values()) == len(at.scheduler.dispatcher.queue)
    )
