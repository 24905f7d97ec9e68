"""Figures with their intervals, and tables of them, as commands that simulate print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extproc.lab.report.cells import MeanInterval


def number(value: float | None, *, signed: bool = False) -> str:
    """A figure with as many digits as say something."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    return f"{value:{sign}.4f}" if abs(value) < 10 else f"{value:{sign}.0f}"


def said(value: MeanInterval | None, *, signed: bool = False) -> str:
    """A mean, and half of its interval where there is one."""
    if value is None:
        return "-"
    half = "" if value.half is None else f" ± {number(value.half)}"
    return number(value.mean, signed=signed) + half


def columns(table: list[list[str]]) -> list[str]:
    """A table's lines: the first column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell:>{widths[at]}}" for at, cell in enumerate(row[1:], 1))
        for row in table
    ]
