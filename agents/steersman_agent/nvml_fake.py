"""A fake NVML: an object with pynvml's calls, constants and errors over a script that may change any time.

    lib = FakeNvml(Path("gpus.json"))        # re-read when the file changes
    lib = FakeNvml({"gpus": [{}, {}]})       # or a dict, changed in place

The script is `{"driver": true, "gpus": [GPU, …]}`; a GPU is an object of these keys, all optional:

    uuid, name, pci_id        who it is (GPU-fake-0000…, "NVIDIA H100 80GB HBM3", 00000000:01:00.0)
    lost                      true: every call raises GpuIsLost, as after XID 79
    xids                      [79, …]: append a code to raise that XID event, once
    throttle                  a bitmask, or names: ["hw_thermal_slowdown", "sw_power_cap", …] (THROTTLE)
    sm_clock_mhz, sm_clock_max_mhz, utilization_percent, temperature_c, power_w, power_limit_w
    memory_used_bytes, memory_total_bytes
    memory_reserved_bytes     used, by the first version of the call; `memory_v2: false` has no other
    ecc_corrected, ecc_uncorrected, nvlink_errors
    retired_pages, retirement_pending
    remapped_rows             [corrected, uncorrected, pending, failed]
    processes                 [{"pid": 1234, "memory_bytes": 80000000000}, …]
    mig                       [{"uuid": …, "memory_used_bytes": …, "memory_total_bytes": …}, …]

`null` for a key means that the card does not support the call (NVMLError_NotSupported). `"driver": false`
makes every call fail as a missing driver does. Write the file with `write_script`, which replaces it whole.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

#: How often a waiting `nvmlEventSetWait_v2` looks at the script.
EVENT_POLL_S: Final = 0.02

THROTTLE: Final = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clock_setting": 0x100,
}

#: A healthy, idle card; like Ampere and later it has no retired pages but remapped rows.
HEALTHY: Final[Mapping[str, Any]] = {
    "name": "NVIDIA H100 80GB HBM3",
    "lost": False,
    "xids": [],
    "throttle": ["gpu_idle"],
    "sm_clock_mhz": 1980,
    "sm_clock_max_mhz": 1980,
    "utilization_percent": 0,
    "temperature_c": 34,
    "power_w": 72.0,
    "power_limit_w": 700.0,
    "memory_used_bytes": 0,
    "memory_total_bytes": 85_520_809_984,
    "memory_reserved_bytes": 0,
    "memory_v2": True,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
    "nvlink_errors": 0,
    "retired_pages": None,
    "retirement_pending": None,
    "remapped_rows": [0, 0, False, False],
    "processes": [],
    "mig": [],
}


def write_script(path: Path, script: Mapping[str, Any]) -> None:
    """Replace a script file whole: a reader sees the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(script), encoding="utf-8")
    beside.replace(path)


class FakeNvml:
    """See the module. Constants and errors are the real pynvml's, which imports without a driver."""

    def __init__(self, script: Path | dict[str, Any]) -> None:
        self._real = importlib.import_module("pynvml")
        self._path = script if isinstance(script, Path) else None
        self._script: dict[str, Any] = {} if isinstance(script, Path) else script
        self._stamp: tuple[int, int] | None = None
        self._initialised = False

    def __getattr__(self, name: str) -> Any:
        """Constants and error classes of pynvml; a function that the fake has not does not exist."""
        value = getattr(self._real, name)
        if callable(value) and not isinstance(value, type):
            raise AttributeError(f"FakeNvml has no {name}")
        return value

    # The script.

    def _now(self) -> dict[str, Any]:
        """The script as it stands; a file that is missing or half-written leaves the last good one."""
        if self._path is not None:
            try:
                stat = self._path.stat()
                stamp = (stat.st_mtime_ns, stat.st_ino)
                if stamp != self._stamp:
                    script = json.loads(self._path.read_text(encoding="utf-8"))
                    if isinstance(script, dict):
                        self._script, self._stamp = script, stamp
            except (OSError, ValueError):
                pass
        if not self._script.get("driver", True):
            raise self._real.NVMLError(self._real.NVML_ERROR_DRIVER_NOT_LOADED)
        return self._script

    def _cards(self) -> list[dict[str, Any]]:
        if not self._initialised:
            raise self._real.NVMLError(self._real.NVML_ERROR_UNINITIALIZED)
        cards: list[dict[str, Any]] = self._now().get("gpus", [])
        return cards

    def _card(self, index: int) -> dict[str, Any]:
        cards = self._cards()
        if not 0 <= index < len(cards) or cards[index].get("lost"):
            raise self._real.NVMLError(self._real.NVML_ERROR_GPU_IS_LOST)
        return cards[index]

    def _get(self, handle: tuple[int, ...], key: str) -> Any:
        value = self._card(handle[0]).get(key, HEALTHY.get(key))
        if value is None:
            raise self._real.NVMLError(self._real.NVML_ERROR_NOT_SUPPORTED)
        return value

    # pynvml's calls, by pynvml's names.

    def nvmlInit(self) -> None:  # noqa: N802
        self._now()
        self._initialised = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._initialised = False

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        self._cards()
        return "fake"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._cards())

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[int, ...]:  # noqa: N802
        if not 0 <= index < len(self._cards()):
            raise self._real.NVMLError(self._real.NVML_ERROR_INVALID_ARGUMENT)
        self._card(index)
        return (index,)

    def nvmlDeviceGetIndex(self, handle: tuple[int, ...]) -> int:  # noqa: N802
        self._card(handle[0])
        return handle[0]

    def nvmlDeviceGetUUID(self, handle: tuple[int, ...]) -> str:  # noqa: N802
        index = handle[0]
        if len(handle) == 2:
            return str(self._get(handle, "mig")[handle[1]].get("uuid", f"MIG-fake-{index}-{handle[1]}"))
        return str(self._card(index).get("uuid", f"GPU-fake-{index:04d}"))

    def nvmlDeviceGetName(self, handle: tuple[int, ...]) -> str:  # noqa: N802
        return str(self._get(handle, "name"))

    def nvmlDeviceGetPciInfo(self, handle: tuple[int, ...]) -> Any:  # noqa: N802
        return SimpleNamespace(
            busId=self._card(handle[0]).get("pci_id", f"00000000:{handle[0] + 1:02X}:00.0")
        )

    def nvmlDeviceGetUtilizationRates(self, handle: tuple[int, ...]) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self._get(handle, "utilization_percent"), memory=0)

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[int, ...], version: int | None = None) -> Any:  # noqa: N802
        if len(handle) == 2:
            part = self._get(handle, "mig")[handle[1]]
            used, total = part.get("memory_used_bytes", 0), part.get("memory_total_bytes", 10 * 2**30)
        else:
            used, total = self._get(handle, "memory_used_bytes"), self._get(handle, "memory_total_bytes")
        reserved = self._get(handle, "memory_reserved_bytes")
        if version is None:
            used += reserved
        elif not self._get(handle, "memory_v2"):
            raise self._real.NVMLError(self._real.NVML_ERROR_FUNCTION_NOT_FOUND)
        return SimpleNamespace(used=used, total=total, free=total - used)

    def nvmlDeviceGetPowerUsage(self, handle: tuple[int, ...]) -> int:  # noqa: N802
        return int(self._get(handle, "power_w") * 1000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: tuple[int, ...]) -> int:  # noqa: N802
        return int(self._get(handle, "power_limit_w") * 1000)

    nvmlDeviceGetPowerManagementLimit = nvmlDeviceGetEnforcedPowerLimit  # noqa: N815

    def nvmlDeviceGetTemperature(self, handle: tuple[int, ...], _sensor: int) -> int:  # noqa: N802
        return int(self._get(handle, "temperature_c"))

    def nvmlDeviceGetClockInfo(self, handle: tuple[int, ...], _clock: int) -> int:  # noqa: N802
        return int(self._get(handle, "sm_clock_mhz"))

    def nvmlDeviceGetMaxClockInfo(self, handle: tuple[int, ...], _clock: int) -> int:  # noqa: N802
        return int(self._get(handle, "sm_clock_max_mhz"))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: tuple[int, ...]) -> int:  # noqa: N802
        reasons = self._get(handle, "throttle")
        if isinstance(reasons, int):
            return reasons
        if not THROTTLE.keys() >= set(reasons):  # a name that NVML has not
            raise self._real.NVMLError(self._real.NVML_ERROR_INVALID_ARGUMENT)
        return sum(THROTTLE[name] for name in set(reasons))

    def nvmlDeviceGetTotalEccErrors(self, handle: tuple[int, ...], kind: int, _counter: int) -> int:  # noqa: N802
        uncorrected = kind == self._real.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        return int(self._get(handle, "ecc_uncorrected" if uncorrected else "ecc_corrected"))

    def nvmlDeviceGetRetiredPages(self, handle: tuple[int, ...], cause: int) -> list[int]:  # noqa: N802
        pages = self._get(handle, "retired_pages")
        double = cause == self._real.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR
        return [0x1000 * page for page in range(pages)] if double else []

    def nvmlDeviceGetRetiredPagesPendingStatus(self, handle: tuple[int, ...]) -> int:  # noqa: N802
        return int(self._get(handle, "retirement_pending"))

    def nvmlDeviceGetRemappedRows(self, handle: tuple[int, ...]) -> tuple[int, ...]:  # noqa: N802
        return tuple(int(value) for value in self._get(handle, "remapped_rows"))

    def nvmlDeviceGetNvLinkState(self, handle: tuple[int, ...], link: int) -> int:  # noqa: N802
        self._get(handle, "nvlink_errors")
        if link:
            raise self._real.NVMLError(self._real.NVML_ERROR_INVALID_ARGUMENT)
        return int(self._real.NVML_FEATURE_ENABLED)

    def nvmlDeviceGetNvLinkErrorCounter(self, handle: tuple[int, ...], _link: int, kind: int) -> int:  # noqa: N802
        replay = kind == self._real.NVML_NVLINK_ERROR_DL_REPLAY
        return int(self._get(handle, "nvlink_errors")) if replay else 0

    def nvmlDeviceGetMigMode(self, handle: tuple[int, ...]) -> list[int]:  # noqa: N802
        mode = int(bool(self._get(handle, "mig")))
        return [mode, mode]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: tuple[int, ...]) -> int:  # noqa: N802
        self._get(handle, "mig")
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: tuple[int, ...], index: int) -> tuple[int, ...]:  # noqa: N802
        if not 0 <= index < len(self._get(handle, "mig")):
            raise self._real.NVMLError(self._real.NVML_ERROR_NOT_FOUND)
        return (handle[0], index)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: tuple[int, ...]) -> list[Any]:  # noqa: N802
        if len(handle) == 2:
            return []
        return [
            SimpleNamespace(pid=process["pid"], usedGpuMemory=process.get("memory_bytes"))
            for process in self._get(handle, "processes")
        ]

    # Events: a set remembers how many of each card's XIDs it has told.

    def nvmlEventSetCreate(self) -> dict[int, int]:  # noqa: N802
        self._cards()
        return {}

    def nvmlDeviceGetSupportedEventTypes(self, handle: tuple[int, ...]) -> int:  # noqa: N802
        self._get(handle, "xids")
        return int(self._real.nvmlEventTypeXidCriticalError)

    def nvmlDeviceRegisterEvents(self, handle: tuple[int, ...], _types: int, events: dict[int, int]) -> None:  # noqa: N802
        events[handle[0]] = len(self._get(handle, "xids"))

    def nvmlEventSetWait_v2(self, events: dict[int, int], timeout_ms: int) -> Any:  # noqa: N802
        until_s = time.monotonic() + timeout_ms / 1000
        while True:
            cards = self._cards()
            for index, told in events.items():
                xids = (cards[index].get("xids") or []) if index < len(cards) else []
                events[index] = min(told, len(xids))
                if events[index] < len(xids):
                    events[index] += 1
                    return SimpleNamespace(
                        device=(index,),
                        eventType=int(self._real.nvmlEventTypeXidCriticalError),
                        eventData=xids[events[index] - 1],
                    )
            if time.monotonic() >= until_s:
                raise self._real.NVMLError(self._real.NVML_ERROR_TIMEOUT)
            time.sleep(EVENT_POLL_S)

    def nvmlEventSetFree(self, events: dict[int, int]) -> None:  # noqa: N802
        events.clear()
