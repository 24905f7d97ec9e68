"""`steersman report`: how an answer is drawn and exported, and what is wrong usage."""

from __future__ import annotations

import csv
import io
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from extproc.cli import group
from extproc.cli.report import CHARGES, csv_of, show
from extproc.observe.analytics import AnalyticsRow, MemoryStore, OpenSpans, Retention, RowKey, report
from extproc.observe.analytics.query import query_of

NOW = 1_795_792_230


def answer(count: int = 2, **query: Any) -> dict[str, Any]:
    """A real one, of tenants with one more request each."""
    books, store = OpenSpans("w"), MemoryStore()
    for number in range(count):
        for _ in range(number + 1):
            row = AnalyticsRow(ok=1, input_tokens=12_345, cost_nano=1, gpu_us=1, slo_met=1)
            row.ttft_ms.add(120.0)
            row.total_ms.add(2_400.0)
            books.fold([(NOW, RowKey(f"t{number}[x]", "chat", "m,1"), AnalyticsRow.merge, (row,))])
    books.fold(
        [
            (
                NOW,
                RowKey("t0[x]", "chat", "m,1"),
                AnalyticsRow.merge,
                (AnalyticsRow(rejected=9, codes={"overloaded": 9}),),
            )
        ]
    )
    store.write(books.changes(), Retention())
    found = report(query_of(query), store.read, Retention(), now_s=NOW, store="memory")
    plain: dict[str, Any] = msgspec.to_builtins(found)
    return plain


def drawn(found: dict[str, Any], *, width: int, chargeback: bool = False) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=width), chargeback=chargeback)
    return out.getvalue()


def test_a_wide_table_has_everything() -> None:
    """Names as they are, the failure's reason, a line for all."""
    text = drawn(answer(), width=200)
    first, second = [line.split() for line in text.splitlines() if line.startswith("t")][1:]
    assert first[:4] == ["t0[x]", "10", "9", "(overloaded)"]
    assert second[:3] == ["t1[x]", "2", "0"]
    assert "hold p99" in text
    assert "2.39 s" in text or "2.40 s" in text
    assert text.splitlines()[-1].split()[:2] == ["all", "12"]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_table_says_what_it_leaves_out(width: int) -> None:
    """No line is broken; requests and time to first token stay."""
    text = drawn(answer(), width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    head = text.splitlines()[1]
    assert "requests" in head
    assert "TTFT p50" in head
    assert "not shown for want of room: " in text
    assert "hold p99" not in head


def test_a_long_table_is_cut() -> None:
    """And it is said where the rest is."""
    text = drawn(answer(70), width=200)
    assert "… and 10 more; --json and --csv have all of 70" in text
    assert drawn({**answer(0), "lines": []}, width=80).endswith("nothing was asked in this time\n")


def test_csv_of_lines() -> None:
    """One line of names, then the same figures; names with commas survive."""
    found = answer(by="tenant,model")
    rows = list(csv.DictReader(io.StringIO(csv_of(found, chargeback=False))))
    assert [(row["tenant"], row["model"], row["requests"]) for row in rows] == [
        ("t0[x]", "m,1", "10"),
        ("t1[x]", "m,1", "2"),
    ]
    assert rows[0]["codes"] == "overloaded=9"
    assert rows[0]["tpot_ms_p50"] == ""
    assert rows[0]["cost"] == "0.000000001"


def test_csv_of_charges() -> None:
    """The documented columns, without exponents."""
    text = csv_of(answer(chargeback=True, day="today"), chargeback=True)
    head, *rows = csv.reader(io.StringIO(text))
    assert head == list(CHARGES)
    assert rows[1] == ["2026-11-27", "t1[x]", "m,1", "2", "24690", "0", "0", "0.000002", "0.000000002"]
    assert "t1[x]" in drawn(answer(chargeback=True, day="today"), width=120, chargeback=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--json", "--format", "csv"), "give one of --format, --json, --csv"),
        (("--json", "--csv", "-"), "give one of --format, --json, --csv"),
        (("--chargeback", "--day", "today", "--since", "1d"), "give --day, or --since and --until"),
        (("--limit", "0"), "0 is not in the range"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    """Exits 2 before anybody is asked."""
    result = CliRunner().invoke(group, ["report", "--address", "127.0.0.1:1", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("width", [60, 80, 120])
def test_charges_are_whole_in_a_narrow_terminal(width: int) -> None:
    """Days and sums stand on one line each, whole; what there is no room for is said."""
    found = answer(chargeback=True, day="today")
    text = drawn(found, width=width, chargeback=True)
    assert len(found["charges"]) == 2
    for charge, cost in zip(found["charges"], ("0.000000001", "0.000000002"), strict=True):
        [row] = [line for line in text.splitlines() if line.rstrip().endswith(cost)]
        assert row.startswith(charge["day"])
        assert str(charge["input_tokens"]) in row.split()
    assert ("not shown for want of room: " in text) is (width < 120)
    assert max(map(len, text.splitlines())) <= width
