from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.lab.replay.log import LogError, RecordRow, read
from extproc.observe.record import FIELDS, MARK

HEADER = json.dumps({MARK: 1, "fields": list(FIELDS)})


def line(id: str, **facts: Any) -> str:  # noqa: A002 (the record's own word)
    given = {name: getattr(RecordRow(at_ms=1.0, id=id, pool="p", outcome="ok"), name) for name in FIELDS}
    return json.dumps([(given | facts)[name] for name in FIELDS])


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{each}\n" for each in lines), encoding="utf-8")
    return path


@given(st.integers(min_value=0))
def test_a_record_that_was_cut_off_anywhere(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Every whole line is read; the torn one, if there is one, is counted."""
    path = tmp_path_factory.mktemp("log") / "record.jsonl"
    rows = [line(str(i), tenant="τένος" * i) for i in range(4)]
    whole = "".join(f"{each}\n" for each in (HEADER, *rows)).encode()
    head = len(HEADER) + 1
    path.write_bytes(whole[: head + cut % (len(whole) - head + 1)])
    kept = path.read_bytes()[head:]
    torn = bool(kept.rpartition(b"\n")[2])
    # Cut right before its line end, a line is whole all the same.
    complete = [each for each in rows if each.encode() in kept.split(b"\n")]
    found = read(path)
    assert [row.id for row in found.rows] == [json.loads(each)[1] for each in complete]
    assert found.torn == (torn and len(complete) == kept.count(b"\n"))


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_whatever_stands_between(tmp_path_factory: pytest.TempPathFactory, noise: list[bytes]) -> None:
    """Bytes that are no line of ours hurt nothing but themselves."""
    path = tmp_path_factory.mktemp("log") / "record.jsonl"
    lines = [HEADER.encode()]
    for i, each in enumerate(noise):
        lines += [each.replace(b"\n", b""), line(str(i)).encode()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert [row.id for row in read(path).rows] == [str(i) for i in range(len(noise))]


def test_another_version_is_refused(tmp_path: Path) -> None:
    """With the place, and what is read here."""
    path = written(tmp_path / "r", json.dumps({MARK: 2, "fields": list(FIELDS)}), line("1"))
    with pytest.raises(LogError, match=r"r:1: is a record of version 2; this steersman reads version 1"):
        read(path)


@pytest.mark.parametrize("text", ["", "hello\n", '{"a": 1}\n', '["no", "header"]\n'])
def test_what_is_no_record(tmp_path: Path, text: str) -> None:
    """Says so, and how to get one."""
    path = tmp_path / "r"
    path.write_text(text)
    with pytest.raises(LogError, match="holds no header of a record; write one with 'record:"):
        read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Names it."""
    with pytest.raises(LogError, match=r"none: cannot be read: No such file"):
        read(tmp_path / "none")


def test_a_header_without_what_is_needed(tmp_path: Path) -> None:
    """Is refused; fields that are not known are ignored, missing ones have their defaults."""
    with pytest.raises(LogError, match="lacks the fields at_ms, id, pool, outcome"):
        read(written(tmp_path / "a", json.dumps({MARK: 1, "fields": ["id"]})))
    header = json.dumps({MARK: 1, "fields": ["new", "id", "at_ms", "outcome", "pool"]})
    found = read(written(tmp_path / "b", header, '[{}, "x", 5, "ok", "p"]', '[1, "y", 5, "ok"]'))
    assert found.rows == [RecordRow(at_ms=5, id="x", pool="p", outcome="ok")]
    assert found.torn == 1


@pytest.mark.parametrize(
    "facts",
    [{"at_ms": "1"}, {"stream": 1}, {"sequences": None}, {"tenant": 3}, {"prefix": "xyz"}, {"prefix": "0"}],
)
def test_a_value_of_another_kind(tmp_path: Path, facts: dict[str, Any]) -> None:
    """Costs its line, not the replay."""
    found = read(written(tmp_path / "r", HEADER, line("1", **facts), line("2")))
    assert ([row.id for row in found.rows], found.torn) == (["2"], 1)


@pytest.mark.parametrize("first", [True, False])
def test_a_request_that_two_services_recorded(tmp_path: Path, first: bool) -> None:
    """Counts once: the decider's arrival and prefix, the other's end."""
    lines = [
        line("1", at_ms=10.0, outcome="expired", prefix="00000001", block_tokens=64.0),
        line("1", at_ms=12.0, outcome="ok", output_tokens=9),
    ]
    found = read(written(tmp_path / "r", HEADER, *(lines if first else reversed(lines))))
    (row,) = found.rows
    assert (row.at_ms, row.outcome, row.output_tokens, row.prefix) == (10.0, "ok", 9, "00000001")
    assert found.twice == 1


def test_a_stretch_of_time(tmp_path: Path) -> None:
    """By arrival, whatever the order of the ends; the end itself is left out."""
    path = written(tmp_path / "r", HEADER, *(line(str(i), at_ms=float(i)) for i in (3, 1, 2, 4)))
    log = read(path)
    assert [row.id for row in log.rows] == ["1", "2", "3", "4"]
    assert [row.id for row in log.between(2.0, 4.0).rows] == ["2", "3"]
    assert [row.id for row in log.between(None, None).rows] == ["1", "2", "3", "4"]
