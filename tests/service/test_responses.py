"""Which replica holds which response outlives the service: a restart, a kill, a damaged file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from extproc.config.load import loads
from extproc.core.responses import HeldResponse, HeldResponses
from extproc.service import responses
from extproc.service.responses import ResponsesPart

TEXT = "gateway: {auth: none}\npools: [{name: p, models: [m], endpoints: [{address: 10.0.0.1:80}]}]\n"
ACME = HeldResponse("acme", "m", "10.0.0.1:80")
S = 1_000_000_000


def begun(folder: Path | None, *, responses_max: int = 200_000) -> tuple[HeldResponses, ResponsesPart]:
    """A service's map and its part, with what was left in the folder."""
    text = TEXT if folder is None else f"{TEXT}state: {{dir: {folder}}}"
    held = HeldResponses(responses_max=responses_max)
    part = ResponsesPart(loads(text), held, clock=lambda: 0)
    asyncio.run(part.start())
    return held, part


def stepped(part: ResponsesPart, now_ns: int) -> None:
    part.step(now_ns=now_ns)
    if part.waiting:
        part.write()


def test_what_was_known_outlives_a_restart(tmp_path: Path) -> None:
    """Whose it is, which model made it, where it is; of a killed service all but its last second's."""
    held, part = begun(tmp_path)
    held.put("resp_1", ACME)
    stepped(part, 0)
    held.put("resp_2", ACME)
    stepped(part, S // 2)
    again, _ = begun(tmp_path)
    assert again.of("acme", "resp_1") == ACME
    assert len(again) == 1, "not yet written"
    asyncio.run(part.stop())
    again, _ = begun(tmp_path)
    assert again.of("acme", "resp_2") == ACME


def test_files_are_bounded_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is written again only while it is the newest; a restart goes on with a new one."""
    monkeypatch.setattr(responses, "EACH_MAX", 10)
    monkeypatch.setattr(responses, "FILES_MAX", 3)
    held, part = begun(tmp_path)
    for number in range(55):
        held.put(f"resp_{number}", ACME)
        stepped(part, number * S)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == [f"responses.{number:010d}.kept" for number in (3, 4, 5, 6)]
    again, later = begun(tmp_path)
    assert len(again) == 35
    again.put("resp_new", ACME)
    stepped(later, 0)
    once_more, _ = begun(tmp_path)
    assert len(once_more) == 36
    assert once_more.of("acme", "resp_new") == ACME


def test_many_at_once_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost between two of them."""
    monkeypatch.setattr(responses, "EACH_MAX", 10)
    held, part = begun(tmp_path)
    for number in range(34):
        held.put(f"resp_{number}", ACME)
    stepped(part, 0)
    assert len(list(tmp_path.iterdir())) == 4
    assert len(begun(tmp_path)[0]) == 34


def test_a_damaged_file_takes_its_own_along_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put aside, and the service begins."""
    monkeypatch.setattr(responses, "EACH_MAX", 2)
    held, part = begun(tmp_path)
    for number in range(6):
        held.put(f"resp_{number}", ACME)
    stepped(part, 0)
    damaged = sorted(tmp_path.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again, part = begun(tmp_path)
    assert len(again) == 4
    assert part.status()["damaged"] == 1
    assert damaged.with_name(f"{damaged.name}.damaged").exists()


def test_a_full_disk_delays_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is written once it can be, files that are full among it."""
    monkeypatch.setattr(responses, "EACH_MAX", 2)
    folder = tmp_path / "state"
    held, part = begun(folder)
    folder.write_text("in the way")
    for number in range(5):
        held.put(f"resp_{number}", ACME)
        stepped(part, number * S)
    assert part.status()["failed"] == 5
    folder.unlink()
    stepped(part, 5 * S)
    assert len(begun(folder)[0]) == 5
    assert len(list(folder.iterdir())) == 3


def test_without_a_folder_nothing_is_gathered() -> None:
    """And nothing grows."""
    held, part = begun(None)
    held.put("resp_1", ACME)
    stepped(part, 0)
    assert held.fresh is None
    assert part.status()["known"] == 1
