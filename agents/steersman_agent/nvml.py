"""Reads GPUs through a library that obeys pynvml's calls (the real one or the fake), into `GpuFigures`.

Owns which calls are made and what their absence means: a call that the card or the driver does not
support leaves its field unknown, never zero; a card that does not answer any more is `lost`. Knows no
threads and no files; calls may block for as long as the driver likes, so never call from an event loop.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from steersman_agent.figures import GpuFigures, MigDevice, ProcessUse

#: Bounds: what a broken driver may make us hold.
GPUS_MAX, LINKS_MAX, MIG_DEVICES_MAX, PROCESSES_MAX = 64, 36, 16, 256

#: What a call is allowed to raise for "unknown": names in the library, so that the fake's are met too.
_LOST_ERRORS: Final = ("NVMLError_GpuIsLost", "NVMLError_ResetRequired")

_U32, _U64 = 2**32 - 1, 2**64 - 1


class GpuLostError(Exception):
    """The card does not answer the driver."""


class DriverGoneError(Exception):
    """The library was shut down under us (driver reload): initialise again."""


@dataclass(slots=True)
class _Card:
    """One GPU: its handle, who it is, and what changes so rarely that it is read now and then."""

    handle: Any
    gpu: GpuFigures


class GpuReader:
    """The GPUs of one initialised library. Use from one thread."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._lost_errors = tuple(getattr(lib, name) for name in _LOST_ERRORS)
        self._cards: dict[int, _Card] = {}

    def read(self, *, fully: bool = True) -> list[GpuFigures]:
        """All GPUs, by index. Not `fully`: links, retired pages, limits and MIG stay as last read.

        Raises `DriverGoneError` where the library has to be initialised again.
        """
        count = self._ask("nvmlDeviceGetCount")
        if count is None:
            raise DriverGoneError
        # A card that fell off the bus may leave the count: the known ones are still asked, and are lost.
        indices = sorted({*range(min(int(count), GPUS_MAX)), *self._cards})
        return [self._read_one(index, fully=fully) for index in indices]

    def handles(self) -> list[tuple[int, Any]]:
        """(index, handle) of the cards that answered, for event registration."""
        return [(index, card.handle) for index, card in self._cards.items()]

    def index_of(self, device: Any) -> int | None:
        """The index of the card that an event names; a lost card no longer tells its own."""
        for index, card in self._cards.items():
            if _address(card.handle) == _address(device):
                return index
        try:
            return _u32(self._ask("nvmlDeviceGetIndex", device))
        except (GpuLostError, DriverGoneError):
            return None

    def _read_one(self, index: int, *, fully: bool) -> GpuFigures:
        card = self._cards.get(index)
        try:
            if card is None:
                handle = self._ask("nvmlDeviceGetHandleByIndex", index)
                if handle is None:
                    return GpuFigures(uuid="", index=index, lost=True)
                card = _Card(handle, self._identity(index, handle))
                fully = True
                self._cards[index] = card
            if fully or card.gpu.lost:
                card.gpu = self._slow_facts(card)
            return self._fast_facts(card)
        except GpuLostError:
            if card is None:
                return GpuFigures(uuid="", index=index, lost=True)
            known = card.gpu
            card.gpu = GpuFigures(
                uuid=known.uuid, index=index, name=known.name, pci_id=known.pci_id, lost=True
            )
            return card.gpu

    def _identity(self, index: int, handle: Any) -> GpuFigures:
        pci = self._ask("nvmlDeviceGetPciInfo", handle)
        return GpuFigures(
            uuid=_text(self._ask("nvmlDeviceGetUUID", handle)),
            index=index,
            name=_text(self._ask("nvmlDeviceGetName", handle)),
            pci_id=_text(getattr(pci, "busId", "")),
        )

    def _slow_facts(self, card: _Card) -> GpuFigures:
        lib, ask, handle = self._lib, self._ask, card.handle
        limit_mw = ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        if limit_mw is None:
            limit_mw = ask("nvmlDeviceGetPowerManagementLimit", handle)
        pending = ask("nvmlDeviceGetRetiredPagesPendingStatus", handle)
        return replace(
            card.gpu,
            lost=False,
            power_limit_w=_watts(limit_mw),
            sm_clock_max_mhz=_u32(ask("nvmlDeviceGetMaxClockInfo", handle, lib.NVML_CLOCK_SM)),
            retired_pages=self._retired_pages(handle),
            retirement_pending=None if pending is None else bool(pending),
            nvlink_errors=self._nvlink_errors(handle),
            mig_devices=tuple(self._mig_devices(handle)),
        )

    def _fast_facts(self, card: _Card) -> GpuFigures:
        lib, ask, handle = self._lib, self._ask, card.handle
        utilization = ask("nvmlDeviceGetUtilizationRates", handle)
        memory = self._memory(handle)
        throttle = ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if throttle is None:  # drivers before 535
            throttle = ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        rows = ask("nvmlDeviceGetRemappedRows", handle) or (None, None, None, None)
        ecc = "nvmlDeviceGetTotalEccErrors"
        corrected, uncorrected = lib.NVML_MEMORY_ERROR_TYPE_CORRECTED, lib.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        return replace(
            card.gpu,
            utilization_percent=_u32(getattr(utilization, "gpu", None)),
            memory_used_bytes=_u64(getattr(memory, "used", None)),
            memory_total_bytes=_u64(getattr(memory, "total", None)),
            power_w=_watts(ask("nvmlDeviceGetPowerUsage", handle)),
            temperature_c=_u32(ask("nvmlDeviceGetTemperature", handle, lib.NVML_TEMPERATURE_GPU)),
            sm_clock_mhz=_u32(ask("nvmlDeviceGetClockInfo", handle, lib.NVML_CLOCK_SM)),
            throttle_reasons=_u64(throttle),
            ecc_corrected=_u64(ask(ecc, handle, corrected, lib.NVML_VOLATILE_ECC)),
            ecc_uncorrected=_u64(ask(ecc, handle, uncorrected, lib.NVML_VOLATILE_ECC)),
            remapped_rows_corrected=_u32(rows[0]),
            remapped_rows_uncorrected=_u32(rows[1]),
            remap_pending=None if rows[2] is None else bool(rows[2]),
            remap_failed=None if rows[3] is None else bool(rows[3]),
            processes=tuple(self._processes(handle, card.gpu.mig_devices)),
        )

    def _ask(self, call: str, *arguments: Any) -> Any:
        """The answer of a call; None where it cannot be had. Raises for a lost card or a lost driver."""
        lib = self._lib
        try:
            function: Callable[..., Any] = getattr(lib, call)
            return function(*arguments)
        except self._lost_errors as error:
            raise GpuLostError from error
        except (lib.NVMLError_Uninitialized, lib.NVMLError_DriverNotLoaded) as error:
            raise DriverGoneError from error
        except (lib.NVMLError, AttributeError):
            return None

    def _retired_pages(self, handle: Any) -> int | None:
        """Pages retired for single-bit and double-bit errors; Ampere and later remap rows instead."""
        causes = (
            self._lib.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
            self._lib.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
        )
        pages = [self._ask("nvmlDeviceGetRetiredPages", handle, cause) for cause in causes]
        return None if any(found is None for found in pages) else sum(map(len, pages))

    def _nvlink_errors(self, handle: Any) -> int | None:
        """Replay, recovery and CRC errors over the links that are up; None where there is none."""
        lib, total, seen = self._lib, 0, False
        kinds = (
            lib.NVML_NVLINK_ERROR_DL_REPLAY,
            lib.NVML_NVLINK_ERROR_DL_RECOVERY,
            lib.NVML_NVLINK_ERROR_DL_CRC_FLIT,
            lib.NVML_NVLINK_ERROR_DL_CRC_DATA,
        )
        for link in range(LINKS_MAX):
            state = self._ask("nvmlDeviceGetNvLinkState", handle, link)
            if state is None:
                break  # no more links
            if state != lib.NVML_FEATURE_ENABLED:
                continue
            for kind in kinds:
                errors = self._ask("nvmlDeviceGetNvLinkErrorCounter", handle, link, kind)
                if errors is not None:
                    total, seen = total + int(errors), True
        return _u64(total) if seen else None

    def _mig_handles(self, handle: Any) -> Iterator[Any]:
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        if not mode or mode[0] != self._lib.NVML_DEVICE_MIG_ENABLE:
            return
        count = self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
        for index in range(min(int(count), MIG_DEVICES_MAX)):
            slice_handle = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
            if slice_handle is not None:
                yield slice_handle

    def _memory(self, handle: Any) -> Any:
        """What the driver keeps for itself (0.5 GB of an H100) is not used; version 1 counts it in."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle, self._lib.nvmlMemory_v2)
        return self._ask("nvmlDeviceGetMemoryInfo", handle) if memory is None else memory

    def _mig_devices(self, handle: Any) -> Iterator[MigDevice]:
        for slice_handle in self._mig_handles(handle):
            memory = self._memory(slice_handle)
            yield MigDevice(
                uuid=_text(self._ask("nvmlDeviceGetUUID", slice_handle)),
                memory_used_bytes=_u64(getattr(memory, "used", None)),
                memory_total_bytes=_u64(getattr(memory, "total", None)),
            )

    def _processes(self, handle: Any, mig_devices: tuple[MigDevice, ...]) -> list[ProcessUse]:
        """Compute processes of the card and of its slices, each pid once."""
        found: dict[int, ProcessUse] = {}
        for one in (handle, *(self._mig_handles(handle) if mig_devices else ())):
            for process in (self._ask("nvmlDeviceGetComputeRunningProcesses", one) or [])[:PROCESSES_MAX]:
                pid = _u32(process.pid)
                if pid is not None:
                    found.setdefault(pid, ProcessUse(pid=pid, memory_bytes=_u64(process.usedGpuMemory)))
        return list(found.values())[:PROCESSES_MAX]


def _address(handle: Any) -> Any:
    """What tells handles apart: where a real one (a ctypes pointer) points, a fake one itself."""
    return ctypes.cast(handle, ctypes.c_void_p).value if isinstance(handle, ctypes._Pointer) else handle  # noqa: SLF001 (public by use)


def _text(value: Any) -> str:
    """Older pynvml gives bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if value else ""


def _whole(value: Any, at_most: int) -> int | None:
    if value is None:
        return None
    number = int(value)
    # NVML says "not available" as all ones in some structures.
    return number if 0 <= number < at_most else None


def _u32(value: Any) -> int | None:
    return _whole(value, _U32)


def _u64(value: Any) -> int | None:
    return _whole(value, _U64)


def _watts(milliwatts: Any) -> float | None:
    return None if milliwatts is None else float(milliwatts) / 1000.0
