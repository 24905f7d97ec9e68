"""The real exporters against a receiver; and what Latitude reads of what they send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from receiver import Receiver, attributes
from trips import MS_NS, SAMPLED, Trips

from extproc.config.tracing import OpenTelemetry
from extproc.observe.tracing.otlp import Otlp
from extproc.observe.tracing.semconv import RELEASES


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A collector of the test's own."""
    with Receiver() as receiver:
        yield receiver


def otlp(receiver: Receiver, protocol: str, **settings: Any) -> Otlp:
    url = receiver.grpc_url if protocol == "grpc" else receiver.http_url
    section = OpenTelemetry(endpoint=url, protocol=protocol, metrics_interval_s=3600, **settings)  # type: ignore[arg-type]  # a literal
    headers = {"Authorization": "Bearer lat-key", "X-Latitude-Project": "gateway"}
    return Otlp(section, RELEASES["0.1/dup"], headers=headers, instance="i")


def streamed() -> Trips:
    """A stream of 5 tokens, whole."""
    trips = Trips(users="named")
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "user": "alice",
        "max_tokens": 5,
    }
    _, reply = trips.ask(("traceparent", SAMPLED), ("tracestate", "v=1"), body=body)
    trips.end(reply, ttft_ns=40 * MS_NS, prompt_tokens=11, output_tokens=5)
    return trips


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_spans_arrive_whole(receiver: Receiver, protocol: str) -> None:
    """Ids, parents, times, kinds, attributes, events, state, and the resource; with the headers."""
    exporter = otlp(receiver, protocol, service_name="lb", resource={"deployment.environment.name": "test"})
    trips = streamed()
    spans = trips.spans()
    assert exporter.send(list(spans.values()))
    exporter.close(1.0)
    got = {span.name: span for span in receiver.spans}
    assert set(got) == set(spans)
    for name, span in spans.items():
        there = got[name]
        assert (there.trace_id, there.span_id) == (f"{span.trace_id:032x}", f"{span.span_id:016x}")
        assert there.parent_id == f"{span.parent_id:016x}"
        assert (there.start_ns, there.end_ns) == (span.start_ns, span.end_ns)
        assert there.attributes == {
            key: list(value) if isinstance(value, list | tuple) else value
            for key, value in span.attributes.items()
        }
        assert len(there.events) == len(span.events)
        assert there.resource["service.name"] == "lb"
        assert there.resource["deployment.environment.name"] == "test"
        assert there.resource["service.instance.id"] == "i"
    assert (got["chat m"].kind, got["steersman.decide"].kind) == (3, 1)
    (state,) = {
        span.trace_state
        for group in receiver.traces[0].resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    }
    assert state == "v=1"
    assert receiver.calls[0][1]["authorization"] == "Bearer lat-key"


def test_what_latitude_reads(receiver: Receiver) -> None:
    """Its path, its headers, and each attribute that it reads, of the type that it reads."""
    exporter = otlp(receiver, "http", metrics=False)
    assert exporter.send(list(streamed().spans().values()))
    exporter.close(1.0)
    ((path, headers),) = receiver.calls
    assert path == "/v1/traces"
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["authorization"] == "Bearer lat-key"
    assert headers["x-latitude-project"] == "gateway"
    (span,) = (
        span
        for group in receiver.traces[0].resource_spans
        for scope in group.scope_spans
        for span in scope.spans
        if span.name == "chat m"
    )
    about = attributes(span.attributes)
    read = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tgi",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.request.stream": True,
        "gen_ai.conversation.id": "alice",
        "gen_ai.server.time_to_first_token": 40_000_000,
    }
    assert {name: about[name] for name in read} == read
    (ttft,) = (pair for pair in span.attributes if pair.key == "gen_ai.server.time_to_first_token")
    assert ttft.value.WhichOneof("value") == "int_value"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_metrics_arrive(receiver: Receiver, protocol: str) -> None:
    """With their buckets, at the latest when the service ends."""
    exporter = otlp(receiver, protocol)
    for metric in RELEASES["0.1/dup"].metrics:
        exporter.record(metric, 2, {"gen_ai.operation.name": "chat"})
    exporter.close(2.0)
    for metric in RELEASES["0.1/dup"].metrics:
        (point,) = receiver.points(metric.name)
        if metric.buckets is None:
            assert point.as_int == 2
        else:
            assert tuple(point.explicit_bounds) == pytest.approx(metric.buckets)
            assert (point.count, point.sum) == (1, 2)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_collector_that_hangs_or_refuses(receiver: Receiver, protocol: str) -> None:
    """An export takes no longer than it may, and says that nothing arrived; so does the end."""
    exporter = otlp(receiver, protocol, timeout_ms=300)
    spans = list(streamed().spans().values())
    receiver.hang.set()
    # The receiver answers no more until it is told to: both come back because they give up.
    assert not exporter.send(spans)
    exporter.record(RELEASES["1.41"].metrics[0], 1.0, {})
    exporter.close(0.5)
    assert receiver.hang.is_set()
    receiver.hang.clear()
    receiver.status = 503
    refused = otlp(receiver, protocol, timeout_ms=300, metrics=False)
    assert not refused.send(spans)
    refused.close(0.5)


def test_only_what_is_wanted(receiver: Receiver) -> None:
    """Without traces spans go nowhere, without metrics figures."""
    exporter = otlp(receiver, "http", traces=False)
    assert exporter.send(list(streamed().spans().values()))
    exporter.close(1.0)
    assert receiver.spans == []
    exporter = otlp(receiver, "http", metrics=False)
    exporter.record(RELEASES["1.41"].metrics[0], 1.0, {})
    exporter.close(1.0)
    assert receiver.points("gen_ai.server.request.duration") == []
