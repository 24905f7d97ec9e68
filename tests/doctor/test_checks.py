"""Doctor's checks as pure functions of evidence; tests/e2e/test_doctor.py has them against what runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import loads
from extproc.doctor.checks import CHECKS
from extproc.doctor.evidence import (
    Backend,
    Elsewhere,
    EnvoySeen,
    Evidence,
    Failed,
    MachineSeen,
    RedisSeen,
    ServiceSeen,
)
from extproc.doctor.finding import FINDINGS_MAX, Check, Finding, error, run, warning

NOW = datetime(2026, 6, 1, tzinfo=UTC)
TEXT = """
gateway: {auth: none}
sharing: {redis: "redis://127.0.0.1:6379/0"}
telemetry: {auth: none, listen: ["127.0.0.1:50052"]}
pools:
  - name: chat
    models: [m]
    endpoints: [{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]
"""
SHA = "a" * 64


def evidence(text: str = TEXT, *, memory_bytes: int = 0, **seen: Any) -> Evidence:
    """What was seen, with nobody asked unless told."""
    machine = MachineSeen(files_open_max=65536, memory_bytes=memory_bytes)
    return Evidence(config=loads(text), file=Path("s.yaml"), now=NOW, machine=machine, **seen)


def said(of: Evidence, id_: str) -> list[Finding]:
    """What one check says."""
    (check,) = (each for each in CHECKS if each.id == id_)
    return list(run([check], of).findings)


def service(counts: dict[str, int] | None = None, **facts: Any) -> ServiceSeen:
    """A service that is well."""
    status = {
        "counts": counts or {},
        "in_flight": 0,
        "telemetry": {"counts": {}},
        "sharing": {"connected": True},
        "quotas": {"reconciled": True},
        "roster": {"ads": {"streams": 1}},
        "endpoints": [],
        **facts,
    }
    return ServiceSeen(address="127.0.0.1:50051", serving=True, status=status, later=status)


def redis(**facts: Any) -> RedisSeen:
    """A Redis that is well."""
    well = RedisSeen(
        place="127.0.0.1:6379",
        version="7.4.1",
        latency_ms=0.2,
        clock_ahead_ms=1,
        memory_max_bytes=0,
        memory_used_bytes=10,
        eviction="noeviction",
    )
    return replace(well, **facts)


def test_ids_are_unique_and_each_says_what_it_is_about() -> None:
    """`--list` and docs/cli.md show them."""
    assert len({each.id for each in CHECKS}) == len(CHECKS)
    assert all(each.about and each.id for each in CHECKS)


def test_what_could_not_be_seen_is_left_out_with_the_reason() -> None:
    """Nobody asked: only what needs the file and the machine is said."""
    report = run(CHECKS, evidence())
    assert report.well
    assert report.left_out["redis.version"] == "not asked (--offline)"
    assert report.left_out["envoy.route"].startswith("Envoy's admin port:")
    assert not set(report.left_out) & set(report.passed)


def test_the_worst_comes_first_and_many_are_counted() -> None:
    """A fleet that is down is not hundreds of lines."""
    many = Check(id="a.many", about="", look=lambda _: [warning(str(i), "m") for i in range(100)])
    bad = Check(id="b.bad", about="", look=lambda _: [error("broken", "mend it")])
    report = run([many, bad], evidence())
    assert not report.well
    assert report.findings[0].id == "b.bad"
    assert len(report.findings) == FINDINGS_MAX + 2
    assert report.findings[-1].seen == f"and {100 - FINDINGS_MAX} more of the same kind"


@pytest.mark.parametrize(
    ("keys", "severity", "words"),
    [
        (f"[{{sha256: {SHA}}}]", None, ""),
        (f"[{{sha256: {SHA}, revoked: true}}]", "error", "has no valid key"),
        (f"[{{sha256: {SHA}, expires: 2026-05-01T00:00:00Z}}]", "error", "the last ended 2026-05-01"),
        (f"[{{sha256: {SHA}, expires: 2026-06-10T00:00:00Z}}]", "warning", "ends 2026-06-10"),
        (f"[{{sha256: {SHA}, expires: 2026-09-01T00:00:00Z}}]", None, ""),
        (
            f"[{{sha256: {SHA}, expires: 2026-06-02T00:00:00Z}}, {{sha256: {'b' * 64}}}]",
            None,
            "",
        ),
        (
            f"[{{sha256: {SHA}, expires: 2026-05-01T00:00:00Z, name: old}}, {{sha256: {'b' * 64}}}]",
            "note",
            "keeps keys that have ended: old",
        ),
    ],
)
def test_keys_that_have_ended_or_will(keys: str, severity: str | None, words: str) -> None:
    """An error where a tenant can prove nothing; a warning two weeks before."""
    text = (
        TEXT.replace("auth: none}\nshar", "auth: api_key}\nshar") + f"tenants: [{{name: acme, keys: {keys}}}]"
    )
    found = said(evidence(text), "config.keys")
    assert [each.severity.value for each in found] == ([severity] if severity else [])
    assert all(words in each.seen and "tenant" in each.seen for each in found)


@pytest.mark.parametrize(
    ("old", "new", "id_", "severity"),
    [
        ("{auth: none}", '{auth: none, envoy_admin: "0.0.0.0:9901"}', "config.admin-port", "error"),
        ("{auth: none}", '{auth: none, listen: "0.0.0.0:8080"}', "config.clients", "warning"),
        ("127.0.0.1:50052", "0.0.0.0:50052", "config.telemetry-auth", "error"),
        ("pools:", 'service: {listen: ["0.0.0.0:50051"]}\npools:', "config.service-port", "warning"),
        (', {address: "10.0.0.2:80"}]', "]\n    discovery: {agents: false}", "config.replicas", "note"),
    ],
)
def test_what_the_file_lays_open(old: str, new: str, id_: str, severity: str) -> None:
    """Each in its place; on loopback none of them."""
    assert said(evidence(), id_) == []
    assert [each.severity.value for each in said(evidence(TEXT.replace(old, new)), id_)] == [severity]


@pytest.mark.parametrize(
    ("counts", "severity"),
    [
        ({}, None),
        ({"routed": 100, "settled.ok": 100}, None),
        ({"routed": 100}, "error"),
        ({"routed": 3}, None),
        ({"routed": 3, "expired": 1}, "error"),
        ({"routed": 100, "settled.ok": 90, "expired": 10}, "warning"),
        ({"routed": 1000, "settled.ok": 999, "expired": 1}, None),
    ],
)
def test_decisions_that_never_come_back(counts: dict[str, int], severity: str | None) -> None:
    """None settled is an error; some expired a warning; few requests say nothing."""
    found = said(evidence(services={"a": service(counts)}), "service.settling")
    assert [each.severity.value for each in found] == ([severity] if severity else [])


def test_refusals_that_go_on_are_errors_and_old_ones_warnings() -> None:
    """Two readings tell them apart."""
    before = service(telemetry={"counts": {"rejected.clock_skew": 2}})
    later = {**before.later, "telemetry": {"counts": {"rejected.clock_skew": 3}}}
    (now,) = said(evidence(services={"a": replace(before, later=later)}), "agents.refused")
    (then,) = said(evidence(services={"a": before}), "agents.refused")
    assert (now.severity.value, then.severity.value) == ("error", "warning")
    assert "and still" in now.seen


@pytest.mark.parametrize(
    ("facts", "id_", "severity"),
    [
        ({}, None, None),
        ({"eviction": "allkeys-lru", "memory_max_bytes": 1000}, "redis.eviction", "error"),
        ({"eviction": "allkeys-lru"}, None, None),
        ({"memory_max_bytes": 10, "memory_used_bytes": 10}, "redis.eviction", "warning"),
        ({"version": "5.0.7"}, "redis.version", "warning"),
        ({"latency_ms": 9.0}, "redis.latency", "warning"),
        ({"clock_ahead_ms": -30_000}, "redis.clock", "warning"),
        (
            {"write_failed": "READONLY You can't write against a read only replica."},
            "redis.reachable",
            "error",
        ),
    ],
)
def test_what_is_wrong_with_redis(facts: dict[str, Any], id_: str | None, severity: str | None) -> None:
    """Eviction matters only where there is a bound to evict at."""
    found = [
        each
        for each in run(CHECKS, evidence(services={"a": service()}, redis=redis(**facts))).findings
        if each.id.startswith("redis.")
    ]
    assert [(each.id, each.severity.value) for each in found] == ([(id_, severity)] if id_ else [])


@pytest.mark.parametrize(("most_mib", "warned"), [(0, False), (128, True), (200, False)])
def test_answers_leave_room_in_redis(most_mib: int, warned: bool) -> None:
    """Where it has a bound; quotas are in the same one."""
    text = f"{TEXT}cache: {{store: redis, bytes_max: {100 << 20}}}"
    seen = redis(memory_max_bytes=most_mib << 20)
    there = {"a": service()}
    assert bool(said(evidence(text, services=there, redis=seen), "redis.room")) is warned
    small = redis(memory_max_bytes=1 << 20)
    assert not said(evidence(services=there, redis=small), "redis.room")


QUESTIONS = """tenants:
  - name: acme
    cache: {mode: 'on', semantic: {}}
    keys: [{sha256: "%s"}]
""" % ("a" * 64)


@pytest.mark.parametrize(("tenants", "warned"), [("", False), (QUESTIONS, True)])
def test_questions_of_the_semantic_cache_count_in_redis(tenants: str, warned: bool) -> None:
    """Where a tenant has it they take as much again; the message names both bounds."""
    own = f"cache: {{store: redis, bytes_max: {100 << 20}, semantic: {{bytes_max: {64 << 20}}}}}\n"
    given = evidence(TEXT + own + tenants, services={"a": service()}, redis=redis(memory_max_bytes=200 << 20))
    found = said(given, "redis.room")
    assert bool(found) is warned
    if warned:
        assert "164 MiB (cache.bytes_max + cache.semantic.bytes_max) of Redis' 200 MiB" in found[0].seen


@pytest.mark.parametrize(
    ("store", "memory_mib", "warned"),
    [
        ("memory", 400, False),
        ("memory", 300, True),
        ("redis", 300, False),
        ("redis", 100, True),
        ("redis", 0, False),
    ],
)
def test_what_the_caches_keep_fits_into_the_memory(store: str, memory_mib: int, warned: bool) -> None:
    """With answers in Redis the questions are in the service's memory too; unknown warns of nothing."""
    own = f"cache: {{store: {store}, bytes_max: {100 << 20}, semantic: {{bytes_max: {64 << 20}}}}}\n"
    found = said(evidence(TEXT + own + QUESTIONS, memory_bytes=memory_mib << 20), "machine.memory")
    assert bool(found) is warned
    if warned and store == "redis":
        assert "64 MiB (cache.semantic.bytes_max)" in found[0].seen


def test_a_service_whose_answers_redis_does_not_take() -> None:
    """Connected for quotas, and not for these."""
    well, away = service(cache={"away": False}), service(cache={"away": True})
    assert not said(evidence(services={"a": well}, redis=redis()), "redis.connected")
    (found,) = said(evidence(services={"a": away}, redis=redis()), "redis.connected")
    assert "cannot keep answers" in found.seen


def test_a_service_that_tells_nothing_from_here_is_no_error() -> None:
    """Figures are at its own machine's socket and its admin port; that it serves is seen all the same."""
    (found,) = said(evidence(services={"10.0.0.7:1": Elsewhere("it serves")}), "service.reachable")
    assert found.severity.value == "note"
    assert "--address https://" in found.mend
    (found,) = said(evidence(services={"10.0.0.7:1": Failed("nobody")}), "service.reachable")
    assert found.severity.value == "error"


@pytest.mark.parametrize(("ahead_ms", "found"), [(0, False), (1500, False), (5000, True), (-5000, True)])
def test_clocks_that_differ(ahead_ms: int, found: bool) -> None:
    """Envoy's Date has whole seconds, so a second and a half is no difference."""
    of = evidence(services={"a": replace(service(), clock_ahead_ms=ahead_ms)})
    assert bool(said(of, "service.clocks")) == found


@pytest.mark.parametrize(
    ("engine", "configured", "told", "severity"),
    [
        ("tgi", 128, 64, "error"),
        ("llamacpp", 128, 2, "warning"),
        ("tgi", 64, 128, "note"),
        ("tgi", 128, 128, None),
        ("vllm", 128, None, None),
    ],
)
def test_permits_against_the_engines_own(
    engine: str, configured: int, told: int | None, severity: str | None
) -> None:
    """Above TGI's limit it refuses inside a 200."""
    text = TEXT.replace("models: [m]", f"models: [m]\n    engine: {engine}").replace(
        '{address: "10.0.0.1:80"}', f'{{address: "10.0.0.1:80", max_concurrent: {configured}}}'
    )
    seen = Backend(address="10.0.0.1:80", engine=engine, models=("m",), max_concurrent=told, health=200)
    found = said(evidence(text, backends={"10.0.0.1:80": seen}), "replicas.permits")
    assert [each.severity.value for each in found] == ([severity] if severity else [])


def test_models_that_engines_do_not_serve() -> None:
    """vLLM would answer 404, TGI takes any name; two models in one pool are wrong everywhere."""

    def found(engine: str, *models: str) -> list[str]:
        text = TEXT.replace("models: [m]", f"models: [m]\n    engine: {engine}")
        seen = {
            f"10.0.0.{i}:80": Backend(address=f"10.0.0.{i}:80", engine=engine, models=(model,))
            for i, model in enumerate(models, 1)
        }
        return [each.severity.value for each in said(evidence(text, backends=seen), "replicas.models")]

    assert found("vllm", "m", "m") == []
    assert found("vllm", "x", "x") == ["error", "error"]
    assert found("tgi", "x", "x") == ["warning", "warning"]
    assert found("tgi", "m", "x") == ["error"]


def test_a_dead_replica_and_one_that_loads() -> None:
    """Both are named with their pool."""
    of = evidence(
        backends={
            "10.0.0.1:80": Failed("Connection refused"),
            "10.0.0.2:80": Backend(address="10.0.0.2:80", engine="tgi", health=503),
        }
    )
    found = said(of, "replicas.reachable")
    assert ["Connection refused" in found[0].seen, "/health with 503" in found[1].seen] == [True, True]


def envoy(version: str = "abc/1.40.0/Clean/RELEASE/BoringSSL", **facts: Any) -> EnvoySeen:
    """An Envoy without any configuration."""
    pages: dict[str, Any] = {"config_dump": {}, "clusters": {}, "stats": {}, **facts}
    return EnvoySeen(admin="127.0.0.1:9901", server_info={"version": version, "state": "LIVE"}, **pages)


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        ("abc/1.31.2/Clean/RELEASE/BoringSSL", "error"),
        ("abc/1.38.0-dev/x/y/z", "note"),
        ("abc/1.41.0/x/y/z", None),
    ],
)
def test_envoys_that_are_too_old(version: str, severity: str | None) -> None:
    """They lack filters; one that is a little older than what is tested is a note."""
    found = said(evidence(envoy=envoy(version)), "envoy.version")
    assert [each.severity.value for each in found] == ([severity] if severity else [])


def test_an_envoy_without_the_filter_is_found() -> None:
    """Whatever it is, nothing in it asks for a decision; what hangs on that is left out."""
    report = run(CHECKS, evidence(envoy=envoy()))
    assert "envoy.ext-proc" in {each.id for each in report.findings}
    assert report.left_out["envoy.filter-order"] == "no listener with an ext_proc filter"


def test_a_tokenizer_that_is_not_gone_by() -> None:
    """A pool whose tokenizer is missing or another model's is a warning that says why."""
    well = {"chat": {"problem": ""}}
    assert not said(evidence(services={"a": service(tokens=well)}), "service.tokenizers")
    wrong = {"chat": {"problem": "/m/tokenizer.json: cannot be read: No such file or directory"}}
    (found,) = said(evidence(services={"a": service(tokens=wrong)}), "service.tokenizers")
    assert found.severity == "warning"
    assert "/m/tokenizer.json" in found.seen


SITES = (
    TEXT
    + """
  - {name: far, models: [m], endpoints: [{address: "10.9.0.1:80"}], remote: {site: hub}}
site: {name: shop, peers: [{name: hub, keys_file: /etc/hub.keys}]}
"""
)
LINK = {"site": "hub", "away": False, "trouble": "", "clock_ahead_s": 0.1}


@pytest.mark.parametrize(
    ("link", "check", "mend"),
    [
        ({"trouble": "Cannot connect", "away": True}, "sites.linked", "gateway runs"),
        ({"trouble": "it answers 401: it expired 500 s ago by this clock"}, "sites.linked", "NTP"),
        ({"trouble": "it answers 401: its key is unknown here"}, "sites.linked", "keys_file"),
        ({"trouble": "its signature is wrong"}, "sites.linked", "keys_file"),
        ({"trouble": "it answers 404: no such route"}, "sites.linked", "'site' section"),
        ({"trouble": "it answers 401: that site may not"}, "sites.linked", "forwards"),
        ({"clock_ahead_s": -60.0}, "sites.clocks", "NTP"),
    ],
)
def test_what_is_wrong_with_another_site(link: dict[str, Any], check: str, mend: str) -> None:
    """It is said with the mend; a site that is well is not spoken of, nor called no engine."""
    well = evidence(SITES, services={"a": service(sites={"links": {"far": LINK}})})
    assert said(well, check) == []
    found = said(evidence(SITES, services={"a": service(sites={"links": {"far": {**LINK, **link}}})}), check)
    assert [each.mend for each in found if mend in each.mend] == [found[0].mend]
    gateway = Backend(address="10.9.0.1:80")
    assert said(evidence(SITES, backends={"10.9.0.1:80": gateway}), "replicas.engine") == []
    refuses = evidence(SITES, backends={"10.9.0.1:80": Failed("it wants a key")})
    assert said(refuses, "replicas.reachable") == []
