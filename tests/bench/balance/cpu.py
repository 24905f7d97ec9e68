"""CPU time of processes with all their descendants, from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(roots: Iterable[int], proc: Path = Path("/proc")) -> float:
    """Seconds of user and system time of these processes and what they have started and still runs."""
    spent: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # After the command's closing bracket: state, parent, … user (12th) and system (13th) ticks.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
        spent[int(folder.name)] = int(fields[11]) + int(fields[12])
        children[int(fields[1])].append(int(folder.name))
    left, ticks = [*roots], 0
    while left:
        pid = left.pop()
        ticks += spent.get(pid, 0)
        left += children.get(pid, [])
    return ticks / _TICKS_PER_S
