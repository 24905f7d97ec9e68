"""output.py: what a child writes is bounded and never lost mid-line."""

from __future__ import annotations

from pathlib import Path

from extproc.supervise import output
from extproc.supervise.output import Output


def test_lines_are_put_together_and_passed_on() -> None:
    """A line that comes in two reads is one line; blank lines are nothing to show."""
    seen: list[tuple[str, str]] = []
    taking = Output("svc", echo=lambda name, line: seen.append((name, line)))
    taking.feed(b"one\ntw")
    taking.feed(b"o\n\n\xff three\n")
    assert seen == [("svc", "one"), ("svc", "two"), ("svc", "\N{REPLACEMENT CHARACTER} three")]


def test_a_line_without_an_end_is_cut_and_the_tail_is_bounded() -> None:
    """Endless output costs bounded memory."""
    taking = Output("svc")
    taking.feed(b"x" * (3 * output.LINE_BYTES_MAX))
    assert max(map(len, taking.tail)) == output.LINE_BYTES_MAX
    taking.feed(b"\n".join(b"%d" % n for n in range(1000)) + b"\n")
    assert len(taking.tail) == output.TAIL_LINES
    assert taking.tail[-1] == "999"


def test_a_log_file_is_moved_aside_at_its_bound(tmp_path: Path) -> None:
    """Two files at most, of LOG_BYTES_MAX each and a read more."""
    file = tmp_path / "svc.log"
    taking = Output("svc", file=file)
    line = b"y" * 1023 + b"\n"
    for _ in range(output.LOG_BYTES_MAX // 1024 * 2 + 10):
        taking.feed(line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["svc.log", "svc.log.1"]
    assert all(path.stat().st_size <= output.LOG_BYTES_MAX + 1024 for path in tmp_path.iterdir())
