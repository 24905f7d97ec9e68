"""Members by name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable

import pytest

from extproc.discovery import dns
from extproc.discovery.dns import DnsName, DnsNames, DnsSource
from extproc.discovery.member import DiscoveredMember
from tests.stand.waits import PATIENCE_S

ONE = DnsName("one.test", 80, zone="a", region="eu")
TWO = DnsName("two.test", 81)


def test_both_families_sorted_and_once() -> None:
    """Envoy's spelling of IPv6; a resolver's order is chance."""
    names = DnsNames([ONE])
    got = names.answered(ONE, ["10.0.0.10", "fd00:0::1", "10.0.0.9", "10.0.0.9"])
    assert got == tuple(
        DiscoveredMember(address, "a", "eu", host="one.test")
        for address in ("10.0.0.9:80", "10.0.0.10:80", "[fd00::1]:80")
    )
    assert names.answered(ONE, ["10.0.0.9", "10.0.0.10", "fd00::1"]) is None, "nothing changed"


def test_a_failure_keeps_the_last_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Until it is over, which is logged too."""
    caplog.set_level(logging.INFO)
    names = DnsNames([ONE])
    names.answered(ONE, ["10.0.0.1"])
    for _ in range(3):
        assert names.failed(ONE, "no such name") is None
    assert names.answered(ONE, []) is None, "no address is a failure, not an empty pool"
    assert names.answered(ONE, ["10.0.0.1"]) is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.INFO]
    assert "no such name; its last 1 members stay" in caplog.messages[0]


def test_a_pool_is_told_when_every_name_was_tried() -> None:
    """Earlier, members would seem to have left."""
    names = DnsNames([ONE, TWO])
    assert names.answered(ONE, ["10.0.0.1"]) is None
    assert names.failed(TWO, "no such name") == (DiscoveredMember("10.0.0.1:80", "a", "eu", host="one.test"),)
    both = names.answered(TWO, ["10.0.0.2"])
    assert both == (
        DiscoveredMember("10.0.0.1:80", "a", "eu", host="one.test"),
        DiscoveredMember("10.0.0.2:81", host="two.test"),
    )


def test_no_answer_at_all_is_no_knowledge() -> None:
    """It is not told as an empty pool."""
    names = DnsNames([ONE])
    assert names.failed(ONE, "no such name") is None


def test_a_name_that_is_gone_leaves_after_its_bound() -> None:
    """ "No such name" is an answer; a resolver that fails says nothing of the name, and ends no count."""
    name = DnsName("gone.test", 80, gone_after_s=10.0)
    names = DnsNames([name])
    names.answered(name, ["10.0.0.1"])
    assert names.gone(name, "no such name", now_s=100.0) is None
    assert names.failed(name, "no answer within 5 s") is None
    assert names.gone(name, "no such name", now_s=109.0) is None
    assert names.gone(name, "no such name", now_s=110.0) == ()
    assert names.answered(name, ["10.0.0.1"]) == (DiscoveredMember("10.0.0.1:80", host="gone.test"),)
    assert names.gone(name, "no such name", now_s=111.0) is None, "it counts anew"


@pytest.mark.parametrize(
    ("code", "leaves"), [(socket.EAI_NONAME, True), (socket.EAI_AGAIN, False), (None, True)]
)
def test_what_a_resolver_says_decides_who_leaves(code: int | None, leaves: bool) -> None:
    """No such name and no address (None) are answers; a resolver out of reach is none."""
    found: list[list[str] | None] = [["10.0.0.1"]]

    async def resolve(_name: str, _port: int) -> list[str]:
        if found[0] is not None:
            return found[0]
        if code is None:
            return []
        raise socket.gaierror(code, "as the system says")

    async def scene() -> list[tuple[DiscoveredMember, ...]]:
        name = DnsName("x.test", 80, gone_after_s=0.0)
        told: list[tuple[DiscoveredMember, ...]] = []
        source = DnsSource("p", [name], lambda _pool, _source, members: told.append(members), resolve=resolve)
        await source._look_up(name)
        found[0] = None
        await source._look_up(name)
        return told

    told = asyncio.run(scene())
    assert told[1:] == ([()] if leaves else [])


def test_two_names_for_one_address_make_one_member() -> None:
    """The first name's."""
    same = DnsName("same.test", 80)
    names = DnsNames([ONE, same])
    names.answered(ONE, ["10.0.0.1"])
    assert names.answered(same, ["10.0.0.1"]) == (
        DiscoveredMember("10.0.0.1:80", "a", "eu", host="one.test"),
    )


def test_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """On names, on addresses, on the interval."""
    with pytest.raises(ValueError, match=f"at most {dns.NAMES_MAX}"):
        DnsNames([DnsName(f"{i}.test", 80) for i in range(dns.NAMES_MAX + 1)])
    got = DnsNames([ONE]).answered(ONE, [f"10.0.{i >> 8}.{i & 255}" for i in range(2000)])
    assert got is not None
    assert len(got) == dns.ADDRESSES_MAX
    assert got[0].address == "10.0.0.0:80"
    assert DnsName("x", 1, interval_s=0.0).pause_s == dns.INTERVAL_S_MIN


Told = list[tuple[str, str, tuple[DiscoveredMember, ...]]]


def follow(
    names: list[DnsName],
    resolve: Callable[[str, int], Awaitable[Iterable[str]]],
    until: Callable[[Told], bool],
) -> Told:
    """Run a source until it has told enough."""

    async def run() -> Told:
        told: Told = []
        enough = asyncio.Event()

        def on_members(pool: str, source: str, members: tuple[DiscoveredMember, ...]) -> None:
            told.append((pool, source, members))
            if until(told):
                enough.set()

        running = asyncio.create_task(DnsSource("chat", names, on_members, resolve=resolve).run())
        await asyncio.wait_for(enough.wait(), PATIENCE_S)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return told

    return asyncio.run(run())


def test_the_systems_resolver_is_asked() -> None:
    """The real one, for the one name that every machine knows."""
    told = follow([DnsName("localhost", 8000)], dns.resolve, bool)
    assert told[0][:2] == ("chat", "dns")
    assert {member.address for member in told[0][2]} <= {"127.0.0.1:8000", "[::1]:8000"}


def test_a_changed_answer_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Across failures of every kind, with one lookup of a name at a time."""
    monkeypatch.setattr(dns, "INTERVAL_S_MIN", 0.005)
    monkeypatch.setattr(dns, "LOOKUP_S_MAX", 0.02)
    script = iter(["10.0.0.1", "gaierror", "slow", "10.0.0.1", "unicode", "10.0.0.2"])
    running = 0

    async def resolve(name: str, port: int) -> list[str]:
        nonlocal running
        running += 1
        assert running == 1
        try:
            step = next(script)
            if step == "gaierror":
                raise socket.gaierror(socket.EAI_AGAIN, "try again")
            if step == "unicode":
                raise UnicodeError("label too long")
            if step == "slow":
                await asyncio.sleep(0.05)
                return ["10.0.0.3"]
            return [step]
        finally:
            running -= 1

    told = follow([DnsName("x.test", 80, interval_s=0.005)], resolve, lambda told: len(told) == 4)
    assert [members[0].address for _, _, members in told] == [
        "10.0.0.1:80",
        "10.0.0.3:80",
        "10.0.0.1:80",
        "10.0.0.2:80",
    ]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2


def test_a_slow_name_delays_no_other() -> None:
    """Each has its own task; the first answers are told when the slow one has been given up on."""
    asked: list[str] = []

    async def resolve(name: str, port: int) -> list[str]:
        asked.append(name)
        if name == "two.test":
            await asyncio.sleep(0.05)
        return ["10.0.0.1" if name == "one.test" else "10.0.0.2"]

    told = follow([TWO, ONE], resolve, bool)
    assert asked == ["two.test", "one.test"]
    assert len(told[0][2]) == 2
