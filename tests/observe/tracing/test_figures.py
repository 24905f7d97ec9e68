from __future__ import annotations

from typing import Any

import pytest
from trips import MS_NS, SAMPLED, UNSAMPLED, Trips

from extproc.core.outcome import End
from extproc.observe.tracing.figures import SpanMetrics
from extproc.observe.tracing.request_trace import TraceEnd
from extproc.observe.tracing.semconv import RELEASES, TOKEN_BUCKETS, Metric

BASE = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "tgi",
    "gen_ai.request.model": "m",
    "gen_ai.response.model": "m",
}


def measured(release: str = "0.1/dup", parent: str = SAMPLED, *, here: bool = True, **facts: Any) -> Any:
    """What is recorded of one request: (metric, value, attributes)."""
    recorded: list[tuple[str, float, dict[str, str]]] = []

    def record(metric: Metric, value: float, attributes: dict[str, str]) -> None:
        recorded.append((metric.name, value, attributes))

    trips = Trips(names=release)
    _, reply = trips.ask(("traceparent", parent))
    trips.end(reply, here=here, **facts)
    trips.request_traces.step(now_ns=trips.now_ns)
    figures = SpanMetrics(RELEASES[release], record, engines={"p": "tgi"})
    for note in trips.notes:
        if isinstance(note, TraceEnd):
            figures.measure(note)
    return recorded


@pytest.mark.parametrize("parent", [SAMPLED, UNSAMPLED])
def test_a_stream(parent: str) -> None:
    """Every metric of both generations of names, sampled or not."""
    got = measured(parent=parent, ttft_ns=100 * MS_NS, prompt_tokens=7, output_tokens=5)
    unknown = {**BASE, "gen_ai.token.modality": "unknown"}
    assert got == [
        ("gen_ai.server.request.duration", 0.5, BASE),
        ("gen_ai.server.time_to_first_token", 0.1, BASE),
        ("gen_ai.server.time_per_output_token", pytest.approx(0.1), BASE),
        ("gen_ai.client.inference.duration", 0.5, BASE),
        ("gen_ai.client.inference.time_to_first_chunk", 0.1, BASE),
        ("gen_ai.client.inference.usage.input_tokens", 7, unknown),
        ("gen_ai.client.inference.usage.output_tokens", 5, unknown),
        ("gen_ai.client.token.usage", 7, {**BASE, "gen_ai.token.type": "input"}),
        ("gen_ai.client.token.usage", 5, {**BASE, "gen_ai.token.type": "output"}),
        ("gen_ai.client.operation.duration", 0.5, BASE),
    ]


def test_a_whole_answer() -> None:
    """No first token, no time a token; no count, no usage in a histogram and zero in a counter."""
    assert [(name, value) for name, value, _ in measured("1.41")] == [
        ("gen_ai.server.request.duration", 0.5),
        ("gen_ai.client.operation.duration", 0.5),
    ]
    counted = {name: value for name, value, _ in measured("0.1")}
    assert counted["gen_ai.client.inference.usage.input_tokens"] == 0


def test_a_failure() -> None:
    """The duration carries error.type; times to tokens are of successes alone."""
    got = measured("1.36", end=End.ERROR, status=500, ttft_ns=5, output_tokens=9)
    base = {"gen_ai.system" if key == "gen_ai.provider.name" else key: value for key, value in BASE.items()}
    assert got[0] == ("gen_ai.server.request.duration", 0.5, {**base, "error.type": "500"})
    assert "gen_ai.server.time_to_first_token" not in {name for name, *_ in got}


def test_only_of_requests_decided_here() -> None:
    """So that several services add up."""
    assert measured(here=False) == []


def test_the_buckets() -> None:
    """Those that the conventions give."""
    assert TOKEN_BUCKETS[:3] == (1, 4, 16)
    assert TOKEN_BUCKETS[-1] == 67_108_864
    by_name = {metric.name: metric.buckets for metric in RELEASES["0.1/dup"].metrics}
    for name in ("gen_ai.server.request.duration", "gen_ai.client.operation.duration"):
        buckets = by_name[name]
        assert buckets is not None
        assert (buckets[0], buckets[-1], len(buckets)) == (0.01, 81.92, 14)
