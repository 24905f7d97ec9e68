from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from steersman_agent.figures import GpuFigures, ProcessUse
from steersman_agent.gpus import map_pids, uuids_of
from steersman_agent.processes import gpus_of, listeners, listening_inodes, parents

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0
   2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4244 1 0
"""


def test_listeners_are_told_from_connections() -> None:
    """Port 8080 has one listener and one connection."""
    assert listening_inodes(TABLE, [8080]) == {"4242": 8080}
    assert listening_inodes(TABLE, [8080, 8081, 1]) == {"4242": 8080, "4244": 8081}


@pytest.mark.parametrize(
    ("listener", "gpus_by_pid", "others", "expected"),
    [
        (20, {20: ["A"]}, (), ("A",)),  # the listener itself
        (20, {22: ["B", "A"]}, (), ("A", "B")),  # its child's child
        (20, {30: ["C"]}, (), ("C",)),  # TGI: router 20 and shard 30, children of launcher 10
        (20, {30: ["C"]}, (30,), ()),  # 30 is another replica's listener: 10 is a supervisor
        (20, {40: ["D"]}, (), ()),  # a stranger
        (10, {40: ["D"]}, (), ()),  # the parent is init: no further
    ],
)
def test_gpus_by_family(
    listener: int, gpus_by_pid: dict[int, list[str]], others: tuple[int, ...], expected: tuple[str, ...]
) -> None:
    """1 ─ 10 ─ 20 ─ 21 ─ 22, 10 ─ 30, 1 ─ 40."""
    parent_of = {10: 1, 20: 10, 21: 20, 22: 21, 30: 10, 40: 1}
    assert gpus_of(listener, parent_of=parent_of, gpus_by_pid=gpus_by_pid, others=others) == expected


_SERVER = """
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(server.getsockname()[1], child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[tuple[int, int, int]]:
    """A process that listens, with a worker below it: port, its pid, the worker's."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port, worker = map(int, process.stdout.readline().split())
        yield port, process.pid, worker


def test_a_real_listener_and_its_worker_are_found(server: tuple[int, int, int]) -> None:
    """Through /proc of this machine."""
    port, pid, worker = server
    assert listeners([port]) == {port: pid}
    assert parents()[worker] == pid
    assert listeners([]) == {}


def test_a_port_is_mapped_to_the_gpu_of_its_worker(server: tuple[int, int, int]) -> None:
    """NVML names the worker's pid; the listener is its parent."""
    port, _, worker = server
    gpus = [
        GpuFigures(uuid="GPU-a", index=0),
        GpuFigures(uuid="GPU-b", index=1, processes=(ProcessUse(pid=worker),)),
        GpuFigures(uuid="GPU-c", index=2, processes=(ProcessUse(pid=os.getpid()),)),
    ]
    assert uuids_of(gpus, map_pids(gpus, [port])) == {port: ("GPU-b",)}
