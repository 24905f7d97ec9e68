"""Members from a watched file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.discovery.file import FILE_BYTES_MAX, EndpointsError, FileSource, parse
from extproc.discovery.member import DiscoveredMember
from tests.stand.waits import PATIENCE_S

GOOD = """
endpoints:
  - {address: 10.0.0.1:80, zone: a, region: eu, max_concurrent: 64}
  - {address: '[FD00::1]:80'}
"""
MEMBERS = (DiscoveredMember("10.0.0.1:80", "a", "eu", 64), DiscoveredMember("[fd00::1]:80"))


def test_yaml_and_json() -> None:
    """The addresses in the spelling that Envoy has."""
    assert parse(GOOD.encode(), name="f") == MEMBERS
    text = '{"endpoints": [{"address": "10.0.0.1:80", "zone": "a", "region": "eu", "max_concurrent": 64}]}'
    assert parse(text.encode(), name="f") == MEMBERS[:1]
    assert parse(b"endpoints: []", name="f") == ()


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["f: holds no mapping; begin with 'endpoints:'"]),
        ("endpoints: ]", ["f:1: is not YAML: "]),
        ("other: 1", ["f:endpoints: is missing; add it", "f:other: is not a setting here"]),
        ("endpoints: 5", ["f:endpoints: input should be a valid list (it is 5)"]),
        (
            "endpoints:\n- {address: nowhere}\n- {address: 1.2.3.4:80, max_concurrent: 0, zon: a}",
            [
                "f:endpoints[0].address: 'nowhere' has no port; write ip:port, such as 127.0.0.1:8080",
                "f:endpoints[1].max_concurrent: input should be greater than or equal to 1 (it is 0)",
                "f:endpoints[1].zon: is not a setting here",
            ],
        ),
        (
            "endpoints: [{address: 1.2.3.4:80}, {address: '1.2.3.4:080'}]",
            ["f:endpoints[1].address: '1.2.3.4:80' is already at endpoints[0]"],
        ),
        ("a: 2024-13-45", ["f: is not YAML: "]),
        ("[" * 3000, ["f:"]),
        ("\x00", ["f:"]),
    ],
)
def test_every_mistake_is_told_with_its_place(text: str, problems: list[str]) -> None:
    """As file:path: message."""
    with pytest.raises(EndpointsError) as caught:
        parse(text.encode(), name="f")
    assert len(caught.value.problems) == len(problems)
    for got, expected in zip(caught.value.problems, problems, strict=True):
        assert got.startswith(expected)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_rubbish_is_an_endpoints_error(data: bytes) -> None:
    """Whatever stands in the file; nothing else may come out."""
    with contextlib.suppress(EndpointsError):
        parse(data, name="f")


class Watched:
    """A source and what it told, looking when it is told to."""

    def __init__(self, path: Path) -> None:
        self.told: list[tuple[DiscoveredMember, ...]] = []
        self.source = FileSource("chat", path, self.on_members)

    def on_members(self, pool: str, source: str, members: tuple[DiscoveredMember, ...]) -> None:
        assert (pool, source) == ("chat", "file")
        self.told.append(members)

    def looks(self, count: int = 1) -> list[tuple[DiscoveredMember, ...]]:
        async def run() -> None:
            for _ in range(count):
                await self.source.look()

        before = len(self.told)
        asyncio.run(run())
        return self.told[before:]


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "endpoints.yaml"


def test_a_file_is_told_at_the_first_look_and_then_when_it_changes(path: Path) -> None:
    """A change is told once it has been still for a look; a change of nothing is not told."""
    path.write_text(GOOD)
    watched = Watched(path)
    assert watched.looks() == [MEMBERS]
    assert watched.looks(2) == []
    replace(path, "endpoints: [{address: 10.0.0.2:80}]")
    assert watched.looks() == []
    assert watched.looks() == [(DiscoveredMember("10.0.0.2:80"),)]
    replace(path, "# the same\nendpoints: [{address: 10.0.0.2:80}]")
    assert watched.looks(3) == []
    replace(path, "endpoints: []")
    assert watched.looks(2) == [()]


def test_a_file_that_is_being_written_is_not_read(path: Path) -> None:
    """Half a list can be good YAML, and would make members leave."""
    path.write_text(GOOD)
    watched = Watched(path)
    watched.looks()
    lines = [f"  - {{address: 10.0.1.{i}:80}}\n" for i in range(5)]
    with path.open("w") as file:
        file.write("endpoints:\n")
        for line in lines:
            file.write(line)
            file.flush()
            assert watched.looks() == []
    assert len(watched.looks()[0]) == 5


def test_a_same_sized_edit_in_place_is_seen(path: Path) -> None:
    """By its time."""
    path.write_text("endpoints: [{address: 10.0.0.1:80}]")
    watched = Watched(path)
    watched.looks()
    path.write_text("endpoints: [{address: 10.0.0.2:80}]")
    os.utime(path, ns=(1, 1))
    assert watched.looks(2) == [(DiscoveredMember("10.0.0.2:80"),)]


def test_a_bad_file_keeps_the_last_good(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each kind of badness is logged once, and its end."""
    caplog.set_level(logging.INFO)
    path.write_text(GOOD)
    watched = Watched(path)
    watched.looks()
    replace(path, "endpoints: [{address: nowhere}, {zone: a}]")
    assert watched.looks(4) == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2, "both mistakes, once"
    assert f"{path}:endpoints[0].address: 'nowhere' has no port" in caplog.messages[0]
    assert "the last 2 endpoints stay" in caplog.messages[0]
    path.unlink()
    assert watched.looks(3) == []
    assert caplog.messages[2:] == [f"{path}: is not there (the last 2 endpoints stay)"]
    path.mkdir()
    assert watched.looks(3) == []
    assert len(caplog.messages) == 4
    path.rmdir()
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    assert watched.looks(3) == []
    assert f"at most {FILE_BYTES_MAX} are read" in caplog.messages[4]
    replace(path, GOOD)
    assert watched.looks(2) == [], "the same members as before"
    assert caplog.messages[5:] == [f"{path}: is good again: 2 endpoints"]


def test_a_file_that_comes_later_is_told_then(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its absence is a mistake that is told, and no empty pool."""
    watched = Watched(path)
    assert watched.looks(2) == []
    assert caplog.messages == [f"{path}: is not there (nothing is known yet)"]
    replace(path, GOOD)
    assert watched.looks(2) == [MEMBERS]


def test_a_symlink_that_is_swapped_is_followed(path: Path, tmp_path: Path) -> None:
    """How Kubernetes replaces the files of a ConfigMap."""
    for name, address in (("one", "10.0.0.1:80"), ("two", "10.0.0.2:80")):
        (tmp_path / name).write_text(f"endpoints: [{{address: {address}}}]")
    path.symlink_to("one")
    watched = Watched(path)
    assert watched.looks() == [(DiscoveredMember("10.0.0.1:80"),)]
    (tmp_path / "link").symlink_to("two")
    (tmp_path / "link").rename(path)
    assert watched.looks(2) == [(DiscoveredMember("10.0.0.2:80"),)]


def test_it_is_looked_at_until_cancelled(path: Path) -> None:
    """The shell around the looks."""

    async def run() -> None:
        seen: asyncio.Queue[tuple[DiscoveredMember, ...]] = asyncio.Queue()
        source = FileSource("chat", path, lambda pool, name, members: seen.put_nowait(members), poll_s=0.005)
        running = asyncio.create_task(source.run())
        await asyncio.to_thread(path.write_text, GOOD)
        assert await asyncio.wait_for(seen.get(), PATIENCE_S) == MEMBERS
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(run())
