"""Watches the GPUs from two threads of its own: one reads, one waits for XID events.

Owns the threads, the newest `GpuSnapshot` and the bounded XID memory. A driver that blocks (a dying card
can take a call for a minute) blocks a thread here and nothing else; the agent sees the snapshot age.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from steersman_agent import processes
from steersman_agent.figures import GpuFigures, XidEvent
from steersman_agent.nvml import DriverGoneError, GpuReader
from steersman_agent.nvml_real import NoDriverError, open_nvml

log = logging.getLogger(__name__)

#: The newest XIDs of each GPU that are remembered; telemetry.proto names the same number.
XIDS_MAX: Final = 32
#: How long until a missing driver is looked for again.
DRIVER_RETRY_S: Final = 10.0
#: Links, retired pages, limits and MIG are read every so many readings, and after each XID.
FULL_EVERY: Final = 10
#: How long a process-to-GPU map holds while the GPUs' processes stay the same.
MAP_S: Final = 30.0
#: One wait for an event; bounds how long a stop takes.
EVENT_WAIT_MS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSnapshot:
    """All GPUs at one moment (`read_s`, monotonic), and which of them the listener on a port uses."""

    gpus: tuple[GpuFigures, ...] = ()
    uuids_by_port: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    read_s: float = 0.0
    #: The replicas' processes on the cards; None where those of one are not seen (another namespace).
    own_pids: frozenset[int] | None = None


def uuids_of(gpus: Iterable[GpuFigures], pids: Mapping[int, frozenset[int]]) -> dict[int, tuple[str, ...]]:
    """Port → UUIDs of the GPUs that its listener's processes use."""
    by_pid = _gpus_by_pid(gpus)
    return {
        port: tuple(sorted({uuid for pid in each for uuid in by_pid.get(pid, ())}))
        for port, each in pids.items()
    }


def own_pids_of(pids: Mapping[int, frozenset[int]], ports: Iterable[int]) -> frozenset[int] | None:
    """All replicas' processes on the cards; None where a port's are not known."""
    wanted = tuple(ports)
    if not wanted or not all(pids.get(port) for port in wanted):
        return None
    return frozenset().union(*(pids[port] for port in wanted))


def _gpus_by_pid(gpus: Iterable[GpuFigures]) -> dict[int, list[str]]:
    found: defaultdict[int, list[str]] = defaultdict(list)
    for gpu in gpus:
        for process in gpu.processes:
            found[process.pid].append(gpu.uuid)
    return found


def map_pids(gpus: Iterable[GpuFigures], ports: Iterable[int]) -> dict[int, frozenset[int]]:
    """Port → its listener's processes that use GPUs, by /proc."""
    gpus_by_pid = _gpus_by_pid(gpus)
    if not gpus_by_pid:
        return {}
    pids = processes.listeners(ports)
    parent_of = processes.parents()
    others = {*pids.values(), os.getpid()}
    return {
        port: processes.pids_of(pid, parent_of=parent_of, gpus_by_pid=gpus_by_pid, others=others - {pid})
        for port, pid in pids.items()
    }


def read_once(choice: str, ports: Iterable[int] = ()) -> GpuSnapshot:
    """One full reading on the calling thread; `NoDriverError` where there is no driver."""
    lib = open_nvml(choice)
    try:
        gpus = tuple(GpuReader(lib).read())
    except DriverGoneError as error:
        raise NoDriverError("NVML: the driver went away") from error
    finally:
        _shut(lib)
    wanted = tuple(ports)
    pids = map_pids(gpus, wanted)
    return GpuSnapshot(
        gpus=gpus,
        uuids_by_port=uuids_of(gpus, pids),
        read_s=time.monotonic(),
        own_pids=own_pids_of(pids, wanted),
    )


class GpuWatch:
    """Reads every `interval_s` and hands each snapshot to `publish`, on its own thread."""

    def __init__(
        self,
        choice: str,
        *,
        interval_s: float,
        ports: Callable[[], Iterable[int]],
        publish: Callable[[GpuSnapshot], None],
    ) -> None:
        self._choice = choice
        self._interval_s = interval_s
        self._ports = ports
        self._publish = publish
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._xids: defaultdict[int, deque[XidEvent]] = defaultdict(lambda: deque(maxlen=XIDS_MAX))
        self._xid_count = 0
        self._said: set[str] = set()
        self._mapped: tuple[float, object, dict[int, frozenset[int]]] | None = None
        # Daemons: a thread that the driver holds must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 2.0) -> None:
        """Ask the threads to end and wait so long for the reading one."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                lib = open_nvml(self._choice)
            except NoDriverError as error:
                self._say(f"{error}; going on without GPU figures (nvml: off silences this)")
                continue
            try:
                self._read_all(lib)
            except DriverGoneError:
                self._say("NVML: the driver went away; looking for it now and then")
            except Exception:
                # A binding over ctypes may raise anything. No GPU figures then; the agent lives on.
                log.exception("reading the GPUs failed")
                self._say("NVML: going on without GPU figures, trying again now and then")
            finally:
                _shut(lib)

    def _say(self, trouble: str) -> None:
        """Tell of a trouble once, publish that there are no GPUs, and wait before the next attempt."""
        if trouble not in self._said:
            self._said.add(trouble)
            log.warning("%s", trouble)
        self._publish(GpuSnapshot(read_s=time.monotonic()))
        self._stopping.wait(DRIVER_RETRY_S)

    def _read_all(self, lib: Any) -> None:
        reader = GpuReader(lib)
        over = threading.Event()
        events: threading.Thread | None = None
        readings, seen_xids = 0, 0
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                fully = readings % FULL_EVERY == 0 or seen_xids != self._xid_count
                seen_xids = self._xid_count
                gpus = tuple(
                    replace(gpu, xids=tuple(self._xids[gpu.index])) if self._xids.get(gpu.index) else gpu
                    for gpu in reader.read(fully=fully)
                )
                now_s = time.monotonic()
                pids = self._map(gpus, now_s)
                self._publish(
                    GpuSnapshot(
                        gpus=gpus,
                        uuids_by_port=uuids_of(gpus, pids),
                        read_s=now_s,
                        own_pids=own_pids_of(pids, self._ports()),
                    )
                )
                readings += 1
                if events is None:
                    events = threading.Thread(
                        target=self._wait_for_xids, args=(lib, reader, over), name="nvml-xid", daemon=True
                    )
                    events.start()
                self._wake.wait(self._interval_s)
        finally:
            over.set()
            if events is not None:
                events.join(2 * EVENT_WAIT_MS / 1000)

    def _map(self, gpus: tuple[GpuFigures, ...], now_s: float) -> dict[int, frozenset[int]]:
        """Ports to processes on GPUs, looked up anew when those processes change and now and then."""
        ports = tuple(self._ports())
        key = (ports, tuple((gpu.uuid, tuple(use.pid for use in gpu.processes)) for gpu in gpus))
        if self._mapped is None or self._mapped[1] != key or now_s - self._mapped[0] >= MAP_S:
            self._mapped = (now_s, key, map_pids(gpus, ports) if ports else {})
        return self._mapped[2]

    def _wait_for_xids(self, lib: Any, reader: GpuReader, over: threading.Event) -> None:
        try:
            events = lib.nvmlEventSetCreate()
        except (lib.NVMLError, AttributeError) as error:
            log.info("no XID events: %s", error)
            return
        registered = 0
        for index, handle in reader.handles():
            try:
                kinds = lib.nvmlDeviceGetSupportedEventTypes(handle) & lib.nvmlEventTypeXidCriticalError
                if kinds:
                    lib.nvmlDeviceRegisterEvents(handle, kinds, events)
                    registered += 1
            except lib.NVMLError as error:
                log.info("GPU %d: no XID events: %s", index, error)
        try:
            while registered and not over.is_set():
                try:
                    event = lib.nvmlEventSetWait_v2(events, EVENT_WAIT_MS)
                except lib.NVMLError_Timeout:
                    continue
                except lib.NVMLError as error:
                    log.debug("waiting for XID events: %s", error)
                    over.wait(1.0)
                    continue
                index_of = reader.index_of(event.device)
                if index_of is not None:
                    code = int(event.eventData) & 0xFFFFFFFF
                    self._xids[index_of].append(XidEvent(code=code, unix_ms=time.time_ns() // 1_000_000))
                    self._xid_count += 1
                    self._wake.set()
        finally:
            try:
                lib.nvmlEventSetFree(events)
            except lib.NVMLError as error:
                log.debug("freeing the event set: %s", error)


def _shut(lib: Any) -> None:
    try:
        lib.nvmlShutdown()
    except lib.NVMLError as error:
        log.debug("shutting NVML down: %s", error)
