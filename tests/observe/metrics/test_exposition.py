from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from prometheus_client.core import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from prometheus_client.registry import Collector

from extproc.core.adapters import LoadedAdapters, PoolAdapters
from extproc.core.outcome import Reject
from extproc.core.reports import GpuReport, KvReport, ReplicaReport
from extproc.core.scaling.values import PoolPlan
from extproc.core.spill.values import SpillRule
from extproc.observe.metrics import exposition
from extproc.observe.metrics.exposition import PLAIN, SAMPLES_A_PIECE, chosen, render
from extproc.observe.metrics.samples import families
from extproc.observe.metrics.snapshot import CacheSeen, ScalingSeen, SeenScaling, SemanticSeen, TokensSeen
from extproc.observe.metrics.table import TABLE
from tests.stand.examples import examples

Make = Callable[..., Any]
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"
ACCEPTS = [
    "",
    "text/plain;version=0.0.4",
    "text/plain; version=1.0.0; escaping=allow-utf-8",
    "text/plain; version=1.0.0; escaping=dots",
    OPEN,
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4",
]
written = partial(render, rest=lambda: None)


class Library(Collector):
    """The same samples, left to the client library."""

    def __init__(self, snapshot: Any) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        for spec, samples in families(self.snapshot):
            counter = spec.kind == "counter"
            name = spec.full_name.removesuffix("_total") if counter else spec.full_name
            metric = Metric(name, spec.meaning, spec.kind)
            for ending, values, value in samples:
                labels = (*spec.labels, "le") if ending == "_bucket" else spec.labels
                full = name + ("_total" if counter else ending)
                metric.add_sample(full, dict(zip(labels, values, strict=True)), value)
            yield metric


@pytest.fixture
def busy(scene: Make) -> Any:
    """A scene in which every metric has a sample."""
    at = scene("acme", "prime", permits=4, quota={"requests_per_minute": 100})
    for tenant in ("acme", "prime", "acme"):
        first = at.reservation(tenant)
        at.now_ns += 50_000_000
        at.end(first)
    at.reservation()
    at.scheduler.turned_away("", Reject(status=401, code='no "key"\\\n', message=""), now_ns=at.now_ns)
    at.counting.decided(90_000, now_ns=at.now_ns)
    gpu = GpuReport(
        uuid="GPU-1",
        utilization_percent=3,
        memory_used_bytes=2**34,
        memory_total_bytes=2**36,
        temperature_c=50,
        power_w=1.5,
    )
    report = ReplicaReport(
        address="10.0.0.1:80",
        pool="chat",
        waiting=1,
        running=2,
        kv_used_tokens=5,
        kv_capacity_tokens=9,
        gpus=(gpu,),
        prefix_queried_tokens=8,
        prefix_hit_tokens=3,
        kv=KvReport(cached_tokens=4, complete=True, events=2),
    )
    at.scheduler.fleet.heard(report, now_ns=at.now_ns)
    at.scheduler.fleet.heard(
        msgspec.structs.replace(report, kv=KvReport(cached_tokens=3, complete=True, removed_blocks=1)),
        now_ns=at.now_ns,
    )
    plan = PoolPlan(pool="chat", at_ns=0, wanted=2, ready=1, loading=1, draining=0, why="a test", bound="max")
    at.bound = {("chat", "memory"): 18.0}
    at.cache = CacheSeen(
        requests={("acme", "hit"): 3, ("acme", "miss"): 2},
        fills={"kept": 2},
        saved={"acme": (30.0, 15.0, 1.5)},
        answers=2,
        bytes=1_300,
        evicted=1,
        refused={"damaged": 1},
        dropped={"dropped.away": 2},
        semantic=SemanticSeen(
            requests={("acme", "hit"): 1},
            refused={"numbers": 2},
            checks={"agreed": 3},
            questions=4,
            on=True,
            up=True,
        ),
        on=True,
    )
    lora = PoolAdapters(names=frozenset({"lora"}), loaded_max=1, load_ms=1.0)
    pool = at.scheduler.fleet.pools["chat"]
    pool.adapters, pool.endpoints[0].adapters = lora, LoadedAdapters(lora, pool.adapter_counts)
    pool.endpoints[0].adapters.begins("lora", now_ns=at.now_ns)
    at.adapter_calls = {("chat", "load", "ok"): 1}
    at.scheduler.sites.links.put({"code": "hub"})
    at.scheduler.sites.counts["complex"] = 1
    at.scheduler.counts["place.eu"] = 1
    at.scheduler.spills.counts["chat", "code", "load"] = 1
    at.scheduler.settings.spills = {"chat": SpillRule(pool="chat", to="code", budget_per_hour=1.0)}
    at.tokens = TokensSeen(
        errors={("chat", "estimate"): 0.08},
        prompts={("chat", "exact"): 3},
        texts={("chat", "known"): 5},
        usable={"chat": True},
        bytes={"chat": 1_200},
    )
    at.scaling = ScalingSeen((SeenScaling(plan, age_s=1.0, turns=2),), silence_s=3.0)
    return at


def without_process(text: bytes) -> bytes:
    """The service's own metrics alone."""
    lines = text.splitlines(keepends=True)
    return b"".join(line for line in lines if b"process_" not in line)


@pytest.mark.parametrize("accept", ACCEPTS)
def test_the_text_is_what_the_client_library_writes(
    busy: Any, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, in each format, whatever the pieces are."""
    monkeypatch.setattr(exposition, "SAMPLES_A_PIECE", 3)
    snapshot = busy.snapshot(firing={"burn": True})
    text, content_type = written(snapshot, accept)
    encode, expected_type = chosen(accept)
    assert without_process(text) == encode(Library(snapshot))
    assert content_type == expected_type


@given(values=st.lists(st.text(max_size=12), min_size=1, max_size=5, unique=True))
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_label_value_is_escaped(scene: Make, values: list[str]) -> None:
    """Agents and rules may be called anything: the text stays one that can be read."""
    snapshot = scene().snapshot(firing=dict.fromkeys(values, True))
    for accept in ("", OPEN):
        text, _ = written(snapshot, accept)
        assert without_process(text) == chosen(accept)[0](Library(snapshot)), values


@pytest.mark.parametrize(("accept", "parse"), [("", parse_plain), (OPEN, parse_open)])
def test_every_metric_is_read_back(busy: Any, accept: str, parse: Callable[[str], Iterable[Metric]]) -> None:
    """By the library's parsers: name, type, help, labels and values, each series once."""
    text, _ = written(busy.snapshot(firing={"burn": True}), accept)
    read = {metric.name: metric for metric in parse(text.decode())}
    for spec in TABLE:
        metric = read[spec.full_name.removesuffix("_total") if spec.kind == "counter" else spec.full_name]
        assert (metric.type, metric.documentation) == (spec.kind, spec.meaning)
        assert metric.samples, spec.name
        assert all(tuple(set(sample.labels) - {"le"}) or not spec.labels for sample in metric.samples)
        assert {name for sample in metric.samples for name in sample.labels} - {"le"} == set(spec.labels)
        series = Counter((sample.name, *sorted(sample.labels.items())) for sample in metric.samples)
        assert set(series.values()) == {1}, spec.name
    ok = [each for each in read["steersman_requests"].samples if each.labels["outcome"] == "ok"]
    assert {each.labels["tenant"]: each.value for each in ok} == {"acme": 2.0, "prime": 1.0}
    assert "process_cpu_seconds" in read


def test_an_empty_service_has_every_metric(scene: Make) -> None:
    """Names and types are there before the first request, so dashboards and rules can be checked."""
    text, content_type = written(scene().snapshot())
    assert content_type == PLAIN
    for spec in TABLE:
        assert f"# TYPE {spec.full_name} {spec.kind}\n" in text.decode()


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=x.y", "text/plain; version=;;", "a" * 9_999]
)
def test_a_strange_wish_is_answered_in_plain_text(accept: str) -> None:
    """A scraper that asks for nonsense gets what every scraper reads."""
    assert chosen(accept)[1] == PLAIN


def test_the_renderer_rests_between_pieces(scene: Make) -> None:
    """The thread gives way after each piece: nothing waits for a whole scrape."""
    rests: list[int] = []
    names = {f"rule-{i}": True for i in range(200)}
    at = scene(*[f"t{i}" for i in range(300)], tenants_max=300)
    for name in at.tenants:
        at.one(name)
    text, _ = render(at.snapshot(firing=names), rest=lambda: rests.append(1))
    lines = sum(not line.startswith(b"#") for line in text.splitlines())
    assert len(rests) >= lines / SAMPLES_A_PIECE


def test_others_gauges_are_shown_beside(scene: Make) -> None:
    """What another part brings is written as it stands."""
    snapshot = scene().snapshot()
    metric = Metric("steersman_more", "More.", "gauge")
    metric.add_sample("steersman_more", {"a": "b"}, 3.0)
    snapshot.extra.append(metric)
    text, _ = written(snapshot)
    assert b'# TYPE steersman_more gauge\nsteersman_more{a="b"} 3.0\n' in text


def test_the_process_is_registered_nowhere_else(busy: Any) -> None:
    """A second service in this process shows its own figures, once."""
    registry = CollectorRegistry()
    for _ in range(2):
        text, _ = written(busy.snapshot())
        assert text.count(b"\nprocess_cpu_seconds_total ") == 1
    assert list(registry.collect()) == []


def test_promtool_finds_nothing_to_say(busy: Any) -> None:
    """Prometheus' own linter reads it and has no complaint."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("no promtool on PATH; apt-get install prometheus")
    text, _ = written(busy.snapshot(firing={"burn": True}))
    command = [binary, "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
