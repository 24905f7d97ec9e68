"""Quotas on disk: what a restart knows, and what becomes of a file that is torn, damaged, full or grown."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from extproc.core.quota import Account, Amounts, ExactBooks, Granted, QuotaLimits, Refused, limits
from extproc.core.quota.values import KINDS
from extproc.state.kept_file import NAME, KeptFile, LockedError
from extproc.state.kept_lines import Head, Stamped, line, read

SECOND_NS, DAY_NS = 1_000_000_000, 86_400 * 1_000_000_000
TTL_NS = 60 * SECOND_NS
USED = Amounts(1, 100, 50, 200.0, 0.5)
OWN = limits(
    requests_per_minute=60, output_tokens_per_hour=10_000, budget_per_month=100.0, concurrent_requests=4
)
ACME = Account("acme", "k1", "m", (("tenant", OWN), ("key:k1", limits(requests_per_minute=600))))


class Machine:
    """A machine with a clock of its run, a time of day, and one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_ns, self.wall_ns, self.boot = 10**15, 1_700_000_000 * SECOND_NS, "boot-1"
        self.file: KeptFile | None = None
        self.books = ExactBooks()

    def pass_(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)
        self.wall_ns += round(seconds * 1e9)

    def start(self, **more: Any) -> ExactBooks:
        """A new process: it finds what the last one left, which was killed if it did not `stop`."""
        if self.file is not None:
            self.file.close()  # what the kernel does with a killed one's lock
        self.file = KeptFile(
            self.folder,
            bytes_max=more.pop("bytes_max", 1 << 26),
            ended_max=1_000,
            clock=lambda: self.now_ns,
            wall=lambda: self.wall_ns,
            boot=lambda: self.boot,
            fsync="never",
            **more,
        )
        found = self.file.open()
        self.books = ExactBooks(QuotaLimits(reservation_ttl_ns=TTL_NS))
        self.books.restore(found.state, now_ns=self.now_ns)
        self.books.keep()
        return self.books

    def flush(self, waiting: frozenset[str] = frozenset()) -> bool:
        assert self.file is not None
        batch, touched = self.books.changes(waiting=waiting)
        written = self.file.append(batch)
        if not written:
            self.books.put_back(touched)
        return written

    def reserve(self, name: str, what: Amounts = USED) -> Granted | Refused:
        return self.books.reserve(ACME, name, what, now_ns=self.now_ns)

    def settle(self, name: str, what: Amounts = USED) -> bool:
        return self.books.settle(name, what, now_ns=self.now_ns, account=ACME)

    def used(self) -> dict[str, float]:
        usage = self.books.usage(ACME, now_ns=self.now_ns)
        return {f"{each.scope}/{each.limit}": round(each.used, 6) for each in usage}

    @property
    def path(self) -> Path:
        return self.folder / NAME


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.start()
    return made


def test_a_killed_service_forgets_nothing_that_was_written(machine: Machine) -> None:
    """Windows, budgets and places in flight are as they were; time goes on meanwhile."""
    machine.reserve("a-1")
    machine.reserve("a-2")
    machine.settle("a-1", Amounts(1, 100, 500, 200.0, 7.0))
    machine.flush()
    before = machine.used()
    assert before["tenant/budget_per_month"] == 7.5
    machine.start()
    assert machine.used() == before
    machine.pass_(30)
    machine.start()
    after = machine.used()
    assert after["tenant/requests_per_minute"] == 0
    assert after["tenant/concurrent_requests"] == 1
    assert after["tenant/budget_per_month"] == pytest.approx(7.5, abs=0.01)


def test_a_request_across_the_restart_is_charged_once(machine: Machine) -> None:
    """Its record corrects what was reserved for it, once; one that had ended is not charged again."""
    machine.reserve("a-1")
    machine.reserve("a-2")
    machine.settle("a-2", Amounts(1, 0, 0, 0.0, 3.0))
    machine.flush()
    machine.start()
    assert machine.settle("a-1", Amounts(1, 100, 10, 0.0, 2.0))
    assert not machine.settle("a-1", Amounts(1, 100, 10, 0.0, 2.0))
    assert not machine.settle("a-2", Amounts(1, 0, 0, 0.0, 3.0))
    assert machine.used()["tenant/budget_per_month"] == 5.0
    assert machine.used()["tenant/concurrent_requests"] == 0
    machine.flush()
    machine.start()
    assert not machine.settle("a-1", Amounts(1, 100, 10, 0.0, 2.0))
    assert machine.used()["tenant/budget_per_month"] == 5.0


def test_what_the_last_moment_held_is_charged_once_too(machine: Machine) -> None:
    """What was reserved and not written is charged by its record alone; what ended so, as reserved."""
    machine.reserve("a-1")
    machine.flush()
    machine.reserve("a-2")
    machine.settle("a-1", Amounts(1, 0, 0, 0.0, 3.0))
    machine.start()
    assert machine.settle("a-2", Amounts(1, 0, 0, 0.0, 2.0))
    assert machine.used()["tenant/budget_per_month"] == 2.5
    machine.pass_(61)
    assert machine.books.expire(now_ns=machine.now_ns) == ["a-1"]
    assert machine.used()["tenant/budget_per_month"] == pytest.approx(2.5, abs=0.01)
    machine.flush()
    machine.start()
    # It had expired; a late word of it still corrects it.
    assert machine.settle("a-1", Amounts(1, 0, 0, 0.0, 1.5))
    assert machine.used()["tenant/budget_per_month"] == pytest.approx(3.5, abs=0.01)


def test_who_waited_for_a_place_costs_nothing(machine: Machine) -> None:
    """A held request dies with the service; one that was let go meanwhile is charged by its record."""
    for name in ("a-1", "a-2", "a-3"):
        machine.reserve(name)
    machine.flush(waiting=frozenset({"a-1", "a-2"}))
    machine.flush(waiting=frozenset({"a-1"}))  # a-2 has a replica now
    machine.start()
    assert machine.used()["tenant/concurrent_requests"] == 2
    assert machine.used()["tenant/budget_per_month"] == 1.0
    assert machine.settle("a-1", Amounts(1, 0, 0, 0.0, 2.0))
    assert machine.used()["tenant/budget_per_month"] == 3.0


def test_a_cancelled_one_is_as_if_it_had_never_been(machine: Machine) -> None:
    """Written as reserved and cancelled then: nothing of it is left."""
    machine.reserve("a-1")
    machine.flush()
    machine.books.cancel("a-1", now_ns=machine.now_ns)
    machine.flush()
    machine.start()
    assert set(machine.used().values()) == {0}


def test_credits_and_what_grew_while_it_ran_are_kept(machine: Machine) -> None:
    """An operator's credit is not lost and not given twice; a heartbeat's charge stays."""
    machine.reserve("a-1")
    machine.books.renew("a-1", now_ns=machine.now_ns, so_far=Amounts(1, 100, 50, 200.0, 9.0))
    machine.flush()
    machine.start()
    assert machine.used()["tenant/budget_per_month"] == 9.0
    credit = Amounts(0, 0, 0, 0.0, 4.0)
    machine.books.credit(ACME, credit, credit_id="c", now_ns=machine.now_ns)
    machine.flush()
    machine.start()
    machine.books.credit(ACME, credit, credit_id="c", now_ns=machine.now_ns)
    assert machine.used()["tenant/budget_per_month"] == 5.0


@pytest.mark.parametrize("back_s", [0, 3_600])
def test_after_a_reboot_the_time_of_day_tells_how_long_it_was(machine: Machine, back_s: int) -> None:
    """Clocks of the machine's run begin anew; a time of day that went back lets no time pass."""
    machine.reserve("a-1", Amounts(1, 0, 0, 0.0, 90.0))
    machine.settle("a-1", Amounts(1, 0, 0, 0.0, 90.0))
    machine.flush()
    machine.boot, machine.now_ns = "boot-2", 5 * SECOND_NS
    machine.wall_ns += -back_s * SECOND_NS if back_s else 10 * DAY_NS
    machine.start()
    # A tenth of the budget comes back in three days.
    assert machine.used()["tenant/budget_per_month"] == pytest.approx(90.0 if back_s else 56.667, abs=0.01)


def test_a_torn_last_line_is_mended_and_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """At whatever byte a batch was cut off: what was before it holds, and what comes after is whole again."""
    machine.reserve("a-1")
    machine.flush()
    whole = machine.path.read_bytes()
    machine.reserve("a-2")
    machine.flush()
    longer = machine.path.read_bytes()
    for cut in (*range(len(whole) + 1, len(longer), 7), len(longer) - 1):
        caplog.clear()
        machine.path.write_bytes(longer[:cut])
        machine.start()
        assert machine.used()["tenant/concurrent_requests"] == 1
        assert "its last line was not whole" in caplog.text
        machine.reserve("a-3")
        machine.flush()
        caplog.clear()
        machine.start()
        assert machine.used()["tenant/concurrent_requests"] == 2
        assert "mended" not in caplog.text


def test_damaged_bytes_cost_their_line_alone(machine: Machine) -> None:
    """Whatever byte is wrong: the service starts, and believes only what holds together."""
    for number in range(3):
        machine.reserve(f"a-{number}")
        machine.flush()
    good = machine.path.read_bytes()
    rng = Random(5)
    for _ in range(150):
        data = bytearray(good)
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        machine.path.write_bytes(bytes(data))
        machine.start()
        assert 2 <= machine.used()["tenant/concurrent_requests"] <= 3
    for rubbish in (b"", b"\n", b"\0" * 5_000, b"deadbeef {}\n", os.urandom(10_000)):
        machine.path.write_bytes(rubbish)
        machine.start()
        assert set(machine.used().values()) == {0}


def test_a_full_disk_is_said_once_and_made_up_for(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """The file ends with a whole line; once there is room it holds all that came meanwhile."""
    machine.reserve("a-1")
    machine.flush()
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (machine.path.stat().st_size + 20, most[1]))
        for number in range(2, 4):
            machine.reserve(f"a-{number}")
            assert not machine.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
        signal.signal(signal.SIGXFSZ, before)
    assert caplog.text.count("cannot be written") == 1
    assert not read(machine.path).torn
    assert machine.flush()
    assert "can be written again" in caplog.text
    machine.start()
    assert machine.used()["tenant/concurrent_requests"] == 3


def test_two_services_do_not_share_a_folder(machine: Machine) -> None:
    """The second is told; the first one's file stays as it is."""
    other = KeptFile(machine.folder, bytes_max=1 << 20, ended_max=10)
    with pytest.raises(LockedError, match="another service"):
        other.open()
    machine.reserve("a-1")
    assert machine.flush()


def test_a_grown_file_is_made_small_and_says_the_same(machine: Machine) -> None:
    """Bounded however long it runs; what comes while it is compacted is in the new file."""
    machine.start(bytes_max=100_000)
    assert machine.file is not None
    largest = 0
    for number in range(3_000):
        machine.reserve(f"a-{number}")
        machine.settle(f"a-{number}", Amounts(1, 0, 0, 0.0, 0.001))
        machine.pass_(0.5)
        machine.flush()
        largest = max(largest, machine.path.stat().st_size)
        if machine.file.grown:
            machine.file.compact()
    assert machine.file.counts["compacted"] > 2
    # 1,000 ids that have ended are less than a third of this.
    assert largest < 110_000
    machine.reserve("last")
    machine.flush()
    before = machine.used()
    machine.start()
    assert machine.used() == before
    assert not machine.settle("a-2999", USED)
    assert machine.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_the_restart_agrees_with_what_was_written(machine: Machine, seed: int) -> None:
    """Reserve, settle, renew, cancel, expire, credit in any order: restored books are the written ones."""
    rng = Random(seed)
    number = 0
    for _ in range(400):
        machine.pass_(rng.random() * 3)
        names = [f"a-{max(1, number - rng.randrange(12))}" for _ in range(3)]
        what = Amounts(1, rng.randrange(200), rng.randrange(99), rng.random() * 100, rng.random() / 10)
        match rng.randrange(7):
            case 0 | 1:
                number += 1
                machine.reserve(f"a-{number}", what)
            case 2:
                machine.settle(names[0], what)
            case 3:
                machine.books.renew(names[1], now_ns=machine.now_ns, so_far=what)
            case 4:
                machine.books.cancel(names[2], now_ns=machine.now_ns)
            case 5:
                machine.books.expire(now_ns=machine.now_ns)
            case 6:
                machine.books.credit(ACME, what, credit_id=f"c{rng.random()}", now_ns=machine.now_ns)
        if rng.random() < 0.3:
            machine.flush()
        if rng.random() < 0.05:
            machine.flush()
            before = machine.used()
            machine.start()
            assert machine.used() == before
    totals = machine.books.totals
    ended = totals["settled"] + totals["refunded"] + totals["expired"] + machine.books.outstanding_ns()
    assert totals["reserved"] + totals["added"] == ended


def test_another_versions_kinds_of_limits_are_told_apart_by_name(machine: Machine) -> None:
    """A file whose kinds have other numbers is read by their names; a kind that is no more is forgotten."""
    machine.reserve("a-1")
    machine.reserve("a-2")
    machine.settle("a-2", Amounts(1, 0, 0, 0.0, 3.0))
    machine.flush()
    before = machine.used()
    head, *rest = machine.path.read_bytes().splitlines(keepends=True)
    kinds = [kind.name for kind in KINDS]
    shuffled = ["of_another_version", *reversed(kinds)]
    renumbered = b"".join(_renumbered(each, lambda kind: len(kinds) - kind) for each in rest)
    machine.path.write_bytes(line(Head(1, machine.boot, shuffled)) + renumbered)
    assert head.endswith(b"}\n")
    machine.start()
    assert machine.used() == before
    machine.settle("a-1", Amounts(1, 0, 0, 0.0, 1.0))
    assert machine.used()["tenant/budget_per_month"] == 4.0


def _renumbered(data: bytes, new: Callable[[int], int]) -> bytes:
    stamped = msgspec.json.decode(data[9:], type=Stamped)
    batch = stamped.batch

    def tats(words: dict[int, int]) -> dict[int, int]:
        return {new(kind): tat for kind, tat in words.items()}

    accounts = []
    for each in batch.accounts:
        shaped: Any = [
            (name, [(new(kind), *more) for kind, *more in buckets], *places)
            for name, buckets, *places in each.scopes
        ]
        accounts.append(each._replace(scopes=shaped))
    scopes = [each._replace(tats=tats(each.tats), extra=tats(each.extra)) for each in batch.scopes]
    return line(stamped._replace(batch=batch._replace(accounts=accounts, scopes=scopes)))
