from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.model import Record
from extproc.core.outcome import End, Outcome, Reject, Routed
from extproc.core.policy import ClassSpec, Policy
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.lab.replay.log import RecordRow, read
from extproc.observe import record
from extproc.observe.record import FIELDS, MARK, PREFIX_BLOCKS_MAX, Recorder, tenant_hash
from extproc.observe.spool import aside
from tests.stand.schedulers import make_pool, make_reservation, make_scheduler, make_settled

MS = 1_000_000
UNIX_NS = 1_790_000_000_000_000_000


def recorder(path: Path, **settings: Any) -> Recorder:
    return Recorder(
        Record(file=str(path), **settings), instance="one", clock=lambda: 0, wall_ns=lambda: UNIX_NS
    )


def scheduler(*, hold_ns: int = 0, permits: int = 1) -> Scheduler:
    return make_scheduler(
        make_pool("10.0.0.1:80", permits=permits, name="chat", strategy="least_request"),
        instance="one",
        policy=Policy(classes=(ClassSpec(hold_ns=hold_ns, long_hold_ns=hold_ns),)),
    )


def request(**facts: Any) -> Request:
    given: dict[str, Any] = {
        "kind": RouteKind.CHAT,
        "dialect": Dialect.OPENAI,
        "model": "m",
        "stream": True,
        "max_new_tokens": 64,
        "prompt_tokens": 300,
        "prefix": (11, 22, 33),
        "prefix_block_tokens": 64.0,
    }
    return Request(**given | facts)


def ended(routed: Routed, **facts: Any) -> Outcome:
    given: dict[str, Any] = {
        "reservation": routed.reservation,
        "final": True,
        "status": 200,
        "served_by": "10.0.0.1:80",
        "duration_ns": 500 * MS,
        "ttft_ns": 40 * MS,
        "prompt_tokens": 301,
        "output_tokens": 20,
    }
    return Outcome(**given | facts)


def rows(path: Path) -> list[RecordRow]:
    return read(path).rows


def test_without_a_file_nothing_is_kept() -> None:
    """Neither waits anything, nor does a flush write."""
    off = Recorder(Record(), instance="one", clock=lambda: 0)
    off.watch(scheduler(), now_ns=0)
    assert not off.on
    assert not off.waiting
    off.flush(last=True)


def test_a_request_is_a_line_at_its_end(tmp_path: Path) -> None:
    """When it came, what was expected, what was counted, in the order of the header."""
    path = tmp_path / "record.jsonl"
    books, log = scheduler(), recorder(path)
    books.events.observers = (log,)
    routed = books.admit(request(), Tenant(name="acme"), now_ns=1_500 * MS)
    assert isinstance(routed, Routed)
    log.watch(books, now_ns=1_500 * MS)
    log.flush()
    log.settled(make_settled(ended(routed)), now_ns=2_000 * MS)
    log.flush()
    header, fleet, line = [json.loads(each) for each in path.read_text().splitlines()]
    assert (header[MARK], tuple(header["fields"])) == (1, FIELDS)
    assert fleet["fleet"]["pools"][0]["members"][0][0] == "10.0.0.1:80"
    told = dict(zip(FIELDS, line, strict=True))
    assert told["at_ms"] == UNIX_NS / MS + 1_500
    assert (told["tenant"], told["outcome"], told["endpoint"]) == ("acme", "ok", "10.0.0.1:80")
    assert (told["input_tokens"], told["output_tokens"], told["expected_input_tokens"]) == (301, 20, 300)
    assert (told["ttft_ms"], told["duration_ms"], told["max_new_tokens"]) == (40.0, 500.0, 64)
    assert path.stat().st_mode & 0o777 == 0o600


def test_equal_beginnings_show_and_nothing_else_does(tmp_path: Path) -> None:
    """Blocks are told by a hash whose key is the process's own, so many of them at most, or none at all."""
    hashes = []
    for name in ("a", "b"):
        path = tmp_path / name
        books, log = scheduler(permits=9), recorder(path)
        books.events.observers = (log,)
        for prefix in ((11, 22, 33), (11, 22, 44), tuple(range(1_000))):
            routed = books.admit(request(prefix=prefix), Tenant(name="acme"), now_ns=1)
            assert isinstance(routed, Routed)
            log.settled(make_settled(ended(routed)), now_ns=2)
        log.flush()
        hashes.append([row.prefix for row in rows(path)])
    (first, second, long), (other, _, _) = hashes
    assert first[:16] == second[:16]
    assert first[16:] != second[16:]
    assert other != first
    assert len(long) == 8 * PREFIX_BLOCKS_MAX
    path = tmp_path / "without"
    books, log = scheduler(), recorder(path, prefixes=False, tenants="hashed")
    books.events.observers = (log,)
    routed = books.admit(request(), Tenant(name="acme"), now_ns=1)
    assert isinstance(routed, Routed)
    log.settled(make_settled(ended(routed)), now_ns=2)
    log.flush()
    (row,) = rows(path)
    assert (row.prefix, row.tenant) == ("", tenant_hash("acme"))
    assert "acme" not in path.read_text()


def test_what_was_turned_away_is_there_too(tmp_path: Path) -> None:
    """Shed after its hold, refused at once, left while held, and the one whose end never came."""
    path = tmp_path / "record.jsonl"
    books, log = scheduler(hold_ns=100 * MS), recorder(path)
    books.events.observers = (log,)
    routed = books.admit(request(), Tenant(name="acme"), now_ns=1 * MS)
    assert isinstance(routed, Routed)
    books.admit(request(), Tenant(name="late"), now_ns=2 * MS)
    leaves = books.admit(request(), Tenant(name="gone"), now_ns=3 * MS)
    books.leave(leaves.id, now_ns=13 * MS)  # type: ignore[union-attr]
    books.dispatcher.shed(now_ns=150 * MS)
    log.expired(routed.reservation, now_ns=160 * MS)
    log.flush()
    told = {row.tenant: (row.outcome, row.code, row.duration_ms, row.input_tokens) for row in rows(path)}
    assert told == {
        "gone": ("left", "", 10.0, None),
        "late": ("shed", "overloaded", 148.0, None),
        "acme": ("expired", "", 159.0, None),
    }
    books = scheduler()
    books.peers.own, books.events.observers = "two", (log,)
    assert isinstance(books.admit(request(), Tenant(name="in"), now_ns=1), Routed)
    assert isinstance(books.admit(request(), Tenant(name="full"), now_ns=1), Reject)
    log.flush()
    assert ("full", "shed") in {(row.tenant, row.outcome) for row in rows(path)}


def test_a_decision_that_never_reached_envoy_is_forgotten(tmp_path: Path) -> None:
    """Nothing of it stays in memory."""
    books, log = scheduler(), recorder(tmp_path / "record.jsonl")
    books.events.observers = (log,)
    routed = books.admit(request(), Tenant(name="acme"), now_ns=1)
    assert isinstance(routed, Routed)
    books.cancel(routed.reservation.id, now_ns=2)
    assert not log._open


def test_a_request_that_another_service_decided(tmp_path: Path) -> None:
    """Its arrival is reckoned from its duration; the prefix is the decider's to tell."""
    path = tmp_path / "record.jsonl"
    books, log = scheduler(), recorder(path)
    routed = books.admit(request(), Tenant(name="acme"), now_ns=1)
    assert isinstance(routed, Routed)
    log.settled(make_settled(ended(routed, end=End.ERROR, status=503, ttft_ns=None)), now_ns=900 * MS)
    log.flush()
    (row,) = rows(path)
    assert (row.at_ms, row.outcome, row.status) == (UNIX_NS / MS + 400, "error", 503)
    assert row.prefix == ""


def test_the_fleet_is_told_when_it_changes(tmp_path: Path) -> None:
    """At the start, when members change (not oftener than so), and when learned timings have moved."""
    path = tmp_path / "record.jsonl"
    books, log = scheduler(), recorder(path)
    now_ns = 0

    def told(later_ns: int) -> int:
        nonlocal now_ns
        now_ns += later_ns
        log.watch(books, now_ns=now_ns)
        log.flush()
        return len(read(path).fleets) if path.exists() else 0

    assert told(0) == 1
    assert told(record.FLEET_NS) == 1
    books.fleet.drain("10.0.0.1:80", draining=True)
    assert told(1) == 2
    books.fleet.drain("10.0.0.1:80", draining=False)
    assert told(1) == 2
    assert told(record.FLEET_NS) == 3
    books.fleet.endpoints[0].speed.model.timing.prefill_base_ms *= 2
    assert told(record.FLEET_NS) == 3
    assert told(record.LEARNED_NS) == 4
    books.fleet.endpoints[0].speed.model.timing.prefill_base_ms *= 1.01
    assert told(record.LEARNED_NS) == 4


def test_a_file_that_was_put_aside_is_read_on(tmp_path: Path) -> None:
    """Each file begins with a header and the fleet; together they hold every request that is kept."""
    path = tmp_path / "record.jsonl"
    books, log = scheduler(permits=10_000), recorder(path, bytes_max=65_536)
    books.events.observers = (log,)
    log.watch(books, now_ns=0)
    for i in range(900):
        routed = books.admit(request(), Tenant(name="acme"), now_ns=i)
        assert isinstance(routed, Routed)
        log.settled(make_settled(ended(routed)), now_ns=i + 1)
        if i % 10 == 9:
            log.flush()
    files = [path, aside(path, 1), aside(path, 2)]
    assert all(file.exists() for file in files)
    for file in files:
        first, second = file.read_text().splitlines()[:2]
        assert MARK in json.loads(first)
        assert "fleet" in json.loads(second)
    assert len(rows(path)) == 900


def test_a_process_begins_on_a_line_of_its_own(tmp_path: Path) -> None:
    """What its predecessor left half written costs one line."""
    path = tmp_path / "record.jsonl"
    for killed in (True, False):
        books, log = scheduler(permits=9), recorder(path)
        log.instance = books.peers.own = "first" if killed else "second"
        books.events.observers = (log,)
        log.watch(books, now_ns=0)
        for i in range(3):
            routed = books.admit(request(), Tenant(name="acme"), now_ns=i)
            assert isinstance(routed, Routed)
            log.settled(make_settled(ended(routed)), now_ns=i)
        log.flush()
        if killed:
            path.write_bytes(path.read_bytes()[:-20])
    found = read(path)
    assert (len(found.rows), found.torn) == (5, 1)


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is counted, in the service and in the file."""
    monkeypatch.setattr(record, "WAITING_MAX", 5)
    path = tmp_path / "record.jsonl"
    books, log = scheduler(permits=99), recorder(path)
    books.events.observers = (log,)
    for i in range(8):
        routed = books.admit(request(), Tenant(name="acme"), now_ns=i)
        assert isinstance(routed, Routed)
        log.settled(make_settled(ended(routed)), now_ns=i)
    assert log.counts == {"dropped": 3, "lost": 0}
    log.flush()
    found = read(path)
    assert (len(found.rows), found.dropped) == (5, 3)


def test_another_file_is_begun_whole(tmp_path: Path) -> None:
    """After a reload that names it."""
    books, log = scheduler(), recorder(tmp_path / "a")
    log.watch(books, now_ns=0)
    log.flush()
    log.apply(Record(file=str(tmp_path / "b")))
    log.watch(books, now_ns=1)
    log.flush()
    assert len(read(tmp_path / "b").fleets) == 1


tokens = st.integers(0, 2_000_000)
ms = st.integers(0, 10**9).map(lambda us: us / 1_000)
texts = st.text(max_size=40)


@given(
    texts,
    texts,
    st.sampled_from(End),
    st.booleans(),
    st.none() | tokens,
    st.none() | tokens,
    st.none() | st.integers(1, 10**12),
    st.lists(st.integers(0, 2**64 - 1), max_size=6),
    st.integers(0, 10**15),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    tenant: str,
    model: str,
    end: End,
    stream: bool,
    prompt: int | None,
    limit: int | None,
    ttft_ns: int | None,
    prefix: list[int],
    arrived_ns: int,
) -> None:
    """Whatever names, counts and times a request has, they come back as they were."""
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    log = recorder(path)
    reservation = make_reservation(
        id="one-1",
        tenant=tenant,
        model=model,
        pool="chat",
        input_tokens=7,
        output_tokens=9,
        prompt_bytes=3,
        stream=stream,
        max_new_tokens=limit,
        ttft_ms=12.5,
        held_ms=0.25,
        strategy="steer",
        arm="b",
        place="eu",
    )
    log._open["one-1"] = (arrived_ns, prefix, 64.0, "")
    outcome = Outcome(reservation=reservation, final=True, end=end, prompt_tokens=prompt, ttft_ns=ttft_ns)
    log.settled(make_settled(outcome), now_ns=arrived_ns + 5 * MS)
    log.flush()
    (row,) = rows(path)
    assert row == replace(
        row,
        tenant=tenant,
        model=model,
        outcome=end.value,
        stream=stream,
        input_tokens=prompt,
        max_new_tokens=limit,
        expected_ttft_ms=12.5,
        held_ms=0.25,
        arm="b",
        place="eu",
        duration_ms=5.0,
    )
    assert row.at_ms == pytest.approx((UNIX_NS + arrived_ns) / MS, abs=0.001)
    assert row.ttft_ms == (None if ttft_ns is None else round(ttft_ns / MS, 3))
    assert len(row.prefix) == 8 * len(prefix)
