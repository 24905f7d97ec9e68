"""Which process listens on a port, who descends from it, and so which GPUs a replica runs on (Linux).

Owns /proc. `gpus_of` is pure; the readers see this machine's own namespaces only: for replicas in
containers, name their GPUs in agent.yaml.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"
PROC: Final = Path("/proc")


def listening_inodes(table: str, ports: Iterable[int]) -> dict[str, int]:
    """Socket inode → port for the listeners in a `/proc/net/tcp` text."""
    wanted = set(ports)
    found = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            port = int(fields[1].rpartition(":")[2], 16)
            if port in wanted:
                found[fields[9]] = port
    return found


def listeners(ports: Iterable[int], *, proc: Path = PROC) -> dict[int, int]:
    """Port → pid of the process that listens on it; ports of processes that we may not see are left out."""
    wanted = tuple(ports)
    inodes: dict[str, int] = {}
    for name in ("net/tcp", "net/tcp6"):
        try:
            inodes |= listening_inodes((proc / name).read_text(encoding="ascii"), wanted)
        except OSError:
            continue
    if not inodes:
        return {}
    found: dict[int, int] = {}
    for pid in sorted(_pids(proc)):
        try:
            entries = os.scandir(proc / str(pid) / "fd")
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    target = os.readlink(entry.path)  # noqa: PTH115 (thousands of them)
                except OSError:
                    continue
                if target.startswith("socket:["):
                    port = inodes.get(target[8:-1])
                    # Workers may inherit the socket: the first pid is the one that opened it.
                    if port is not None:
                        found.setdefault(port, pid)
        if len(found) == len(set(inodes.values())):
            break
    return found


def parents(*, proc: Path = PROC) -> dict[int, int]:
    """Pid → parent pid of every process."""
    found = {}
    for pid in _pids(proc):
        try:
            stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # The command stands in parentheses and may hold anything, so count from the last one.
        found[pid] = int(stat.rpartition(")")[2].split()[1])
    return found


def _pids(proc: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(proc) if name.isdigit()]  # noqa: PTH208 (ten times faster)
    except OSError:
        return []


def gpus_of(
    listener: int,
    *,
    parent_of: Mapping[int, int],
    gpus_by_pid: Mapping[int, Iterable[str]],
    others: Iterable[int] = (),
) -> tuple[str, ...]:
    """UUIDs of the GPUs used by a listener's processes (`pids_of`), sorted."""
    pids = pids_of(listener, parent_of=parent_of, gpus_by_pid=gpus_by_pid, others=others)
    return tuple(sorted({uuid for pid in pids for uuid in gpus_by_pid[pid]}))


def pids_of(
    listener: int,
    *,
    parent_of: Mapping[int, int],
    gpus_by_pid: Mapping[int, Iterable[str]],
    others: Iterable[int] = (),
) -> frozenset[int]:
    """The processes on GPUs among a listener and its descendants; else in its parent's family.

    TGI's launcher starts the router, which listens, and the shards, which hold the GPUs, side by side:
    hence the parent's. Not when that family has another replica's listener (or us) in it: then the
    parent is a shell or a supervisor, and says nothing.
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, parent in parent_of.items():
        children[parent].append(pid)

    def family(root: int) -> set[int]:
        seen, open_ends = {root}, [root]
        while open_ends:
            for child in children[open_ends.pop()]:
                if child not in seen:
                    seen.add(child)
                    open_ends.append(child)
        return seen

    def used(pids: set[int]) -> frozenset[int]:
        return frozenset(pid for pid in pids if pid in gpus_by_pid)

    own = used(family(listener))
    parent = parent_of.get(listener, 0)
    if own or parent <= 1:
        return own
    wider = family(parent)
    return frozenset() if wider & set(others) else used(wider)
