"""One contract over the fake and, where this machine has a GPU, over the real library."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from steersman_agent.figures import GpuFigures
from steersman_agent.gpus import DRIVER_RETRY_S, XIDS_MAX, GpuSnapshot, GpuWatch, read_once
from steersman_agent.nvml import DriverGoneError, GpuReader
from steersman_agent.nvml_fake import FakeNvml, write_script
from steersman_agent.nvml_real import NoDriverError, open_nvml
from tests.stand.waits import PATIENCE_S, wait_until


@pytest.fixture(params=["fake", "real"])
def lib(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An initialised library with at least one GPU."""
    if request.param == "fake":
        script = tmp_path / "gpus.json"
        write_script(script, {"gpus": [{"processes": [{"pid": os.getpid()}]}, {}]})
        choice = f"fake:{script}"
    else:
        choice = "auto"
    try:
        opened = open_nvml(choice)
    except NoDriverError as error:
        pytest.skip(f"no GPU here: {error}")
    if not opened.nvmlDeviceGetCount():
        pytest.skip("the driver has no GPU")
    yield opened
    opened.nvmlShutdown()


# What holds for both.


def test_a_gpu_says_who_it_is(lib: Any) -> None:
    """UUID, name and PCI id tell cards apart."""
    gpus = GpuReader(lib).read()
    assert [gpu.index for gpu in gpus] == list(range(len(gpus)))
    assert len({gpu.uuid for gpu in gpus}) == len(gpus)
    for gpu in gpus:
        assert gpu.uuid.startswith("GPU-")
        assert gpu.name
        assert gpu.pci_id.count(":") == 2
        assert not gpu.lost


def test_figures_are_within_their_units(lib: Any) -> None:
    """Absent, or plausible."""
    for gpu in GpuReader(lib).read():
        assert gpu.memory_total_bytes is None or gpu.memory_total_bytes > 2**28
        assert gpu.memory_used_bytes is None or 0 <= gpu.memory_used_bytes <= (gpu.memory_total_bytes or 0)
        assert gpu.utilization_percent is None or gpu.utilization_percent <= 100
        assert gpu.power_w is None or 0 < gpu.power_w < 3000
        assert gpu.temperature_c is None or 0 < gpu.temperature_c < 150
        assert gpu.sm_clock_mhz is None or 0 < gpu.sm_clock_mhz < 6000
        assert gpu.throttle_reasons is None or gpu.throttle_reasons < 2**32
        assert gpu.remap_pending in (None, False, True)


def test_a_short_reading_keeps_what_the_full_one_found(lib: Any) -> None:
    """Limits and links are read now and then, and stay."""
    reader = GpuReader(lib)
    full, short = reader.read()[0], reader.read(fully=False)[0]
    assert (short.power_limit_w, short.nvlink_errors) == (full.power_limit_w, full.nvlink_errors)
    assert (short.uuid, short.sm_clock_max_mhz) == (full.uuid, full.sm_clock_max_mhz)


def test_waiting_for_events_times_out_as_nvml_does(lib: Any) -> None:
    """By an error of its own."""
    events = lib.nvmlEventSetCreate()
    handle = lib.nvmlDeviceGetHandleByIndex(0)
    kinds = lib.nvmlDeviceGetSupportedEventTypes(handle) & lib.nvmlEventTypeXidCriticalError
    if not kinds:
        pytest.skip("this card tells of no XID")
    lib.nvmlDeviceRegisterEvents(handle, kinds, events)
    with pytest.raises(lib.NVMLError_Timeout):
        lib.nvmlEventSetWait_v2(events, 50)
    lib.nvmlEventSetFree(events)


def test_a_wrong_index_is_an_nvml_error(lib: Any) -> None:
    """Of the class that the reader catches."""
    with pytest.raises(lib.NVMLError):
        lib.nvmlDeviceGetHandleByIndex(9999)


# What only a script can bring about.


def fake(*gpus: dict[str, Any]) -> tuple[FakeNvml, dict[str, Any]]:
    script: dict[str, Any] = {"gpus": list(gpus)}
    opened = FakeNvml(script)
    opened.nvmlInit()
    return opened, script


def only(opened: FakeNvml) -> GpuFigures:
    return GpuReader(opened).read()[0]


def test_the_fake_has_every_call_that_the_reader_makes_and_none_of_pynvmls_beside() -> None:
    """A call missing from the fake would be unknown for ever, in silence."""
    folder = Path(importlib.import_module("steersman_agent").__file__ or "").parent
    source = (folder / "nvml.py").read_text() + (folder / "gpus.py").read_text()
    real = importlib.import_module("pynvml")
    opened, _ = fake({})
    older = {"nvmlDeviceGetCurrentClocksThrottleReasons"}
    calls = {call for call in re.findall(r"\bnvml[A-Z]\w+", source) if callable(getattr(real, call))}
    assert len(calls) > 20
    assert [call for call in sorted(calls - older) if call not in dir(opened)] == []
    with pytest.raises(AttributeError):
        opened.nvmlDeviceSetPowerManagementLimit  # noqa: B018


def test_throttle_ecc_and_rows_are_read() -> None:
    """Names and numbers of the script become NVML's."""
    gpu = only(
        fake(
            {
                "throttle": ["hw_thermal_slowdown", "sw_power_cap"],
                "sm_clock_mhz": 345,
                "ecc_corrected": 12,
                "ecc_uncorrected": 1,
                "remapped_rows": [1, 2, True, False],
                "retired_pages": 3,
                "retirement_pending": True,
                "nvlink_errors": 9,
            }
        )[0]
    )
    assert gpu.throttle_reasons == 0x44
    assert (gpu.sm_clock_mhz, gpu.sm_clock_max_mhz) == (345, 1980)
    assert (gpu.ecc_corrected, gpu.ecc_uncorrected) == (12, 1)
    assert (gpu.remapped_rows_corrected, gpu.remapped_rows_uncorrected) == (1, 2)
    assert (gpu.remap_pending, gpu.remap_failed) == (True, False)
    assert (gpu.retired_pages, gpu.retirement_pending, gpu.nvlink_errors) == (3, True, 9)


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("utilization_percent", ["utilization_percent"]),
        ("memory_used_bytes", ["memory_used_bytes", "memory_total_bytes"]),
        ("power_w", ["power_w"]),
        ("power_limit_w", ["power_limit_w"]),
        ("temperature_c", ["temperature_c"]),
        ("sm_clock_mhz", ["sm_clock_mhz"]),
        ("throttle", ["throttle_reasons"]),
        ("ecc_corrected", ["ecc_corrected"]),
        ("remapped_rows", ["remapped_rows_corrected", "remap_failed"]),
        ("retired_pages", ["retired_pages"]),
        ("nvlink_errors", ["nvlink_errors"]),
    ],
)
def test_what_a_card_does_not_support_is_unknown_and_not_zero(key: str, fields: list[str]) -> None:
    """NVMLError_NotSupported leaves the field out and takes nothing else along."""
    gpu = only(fake({key: None})[0])
    assert [getattr(gpu, field) for field in fields] == [None] * len(fields)
    assert not gpu.lost
    assert gpu.name


def test_a_lost_card_is_lost_and_comes_back() -> None:
    """Who it is stays known, its figures do not; its neighbour is not touched."""
    opened, script = fake({"uuid": "GPU-a"}, {"uuid": "GPU-b"})
    reader = GpuReader(opened)
    reader.read()
    script["gpus"][0]["lost"] = True
    lost, other = reader.read(fully=False)
    assert lost == GpuFigures(uuid="GPU-a", index=0, name=lost.name, pci_id=lost.pci_id, lost=True)
    assert other.power_w is not None
    script["gpus"][0]["lost"] = False
    back = reader.read(fully=False)[0]
    assert not back.lost
    assert back.power_limit_w == 700.0


def test_a_card_that_left_the_count_is_still_told_as_lost() -> None:
    """Fallen off the bus, it is not forgotten."""
    opened, script = fake({}, {"uuid": "GPU-b"})
    reader = GpuReader(opened)
    reader.read()
    del script["gpus"][1]
    gpu = reader.read()[1]
    assert (gpu.uuid, gpu.lost) == ("GPU-b", True)


def test_what_the_driver_reserves_is_not_used() -> None:
    """The call's second version says it apart; a driver that has only the first counts it in."""
    card = {"memory_used_bytes": 7, "memory_reserved_bytes": 5}
    assert only(fake(card)[0]).memory_used_bytes == 7
    assert only(fake({**card, "memory_v2": False})[0]).memory_used_bytes == 12


def test_mig_slices_are_told() -> None:
    """Each with its memory."""
    gpu = only(fake({"mig": [{"uuid": "MIG-1", "memory_used_bytes": 5, "memory_total_bytes": 10}, {}]})[0])
    assert [part.uuid for part in gpu.mig_devices] == ["MIG-1", "MIG-fake-0-1"]
    assert gpu.mig_devices[0].memory_used_bytes == 5
    assert only(fake({})[0]).mig_devices == ()


def test_a_driver_that_goes_away_is_said_by_an_error() -> None:
    """The watch then looks for it again."""
    opened, script = fake({})
    reader = GpuReader(opened)
    script["driver"] = False
    with pytest.raises(DriverGoneError):
        reader.read()
    with pytest.raises(NoDriverError):
        open_nvml_of({"driver": False})


def open_nvml_of(script: dict[str, Any]) -> Any:
    opened = FakeNvml(script)
    try:
        opened.nvmlInit()
    except opened.NVMLError as error:
        raise NoDriverError(str(error)) from error


def test_a_half_written_script_leaves_the_last_good_one(tmp_path: Path) -> None:
    """Editors write in pieces."""
    script = tmp_path / "gpus.json"
    write_script(script, {"gpus": [{"temperature_c": 50}]})
    opened = open_nvml(f"fake:{script}")
    assert only(opened).temperature_c == 50
    script.write_text('{"gpus": [{"temper')
    assert only(opened).temperature_c == 50
    write_script(script, {"gpus": [{"temperature_c": 60}]})
    assert only(opened).temperature_c == 60


# The watch's threads.


def watched(choice: str, snapshots: list[GpuSnapshot], *, interval_s: float = 0.05) -> GpuWatch:
    watch = GpuWatch(choice, interval_s=interval_s, ports=tuple, publish=snapshots.append)
    watch.start()
    return watch


def test_xids_are_told_at_once_and_the_newest_are_kept(tmp_path: Path, xids_watched: Event) -> None:
    """An event wakes the reading thread, whatever its interval."""
    script, snapshots = tmp_path / "gpus.json", list[GpuSnapshot]()
    write_script(script, {"gpus": [{}, {}]})
    watch = watched(f"fake:{script}", snapshots, interval_s=60.0)
    try:
        wait_until(lambda: bool(snapshots))
        assert xids_watched.wait(PATIENCE_S)
        write_script(script, {"gpus": [{}, {"xids": [79], "lost": True}]})
        wait_until(lambda: bool(snapshots[-1].gpus[1].xids))
        assert [xid.code for xid in snapshots[-1].gpus[1].xids] == [79]
        assert snapshots[-1].gpus[1].lost
        write_script(script, {"gpus": [{}, {"xids": [79, *range(100, 150)]}]})
        wait_until(lambda: snapshots[-1].gpus[1].xids[-1].code == 149)
        assert len(snapshots[-1].gpus[1].xids) == XIDS_MAX
        assert snapshots[-1].gpus[0].xids == ()
    finally:
        watch.stop()


def test_a_missing_driver_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The agent goes on with the engines alone."""
    script, snapshots = tmp_path / "gpus.json", list[GpuSnapshot]()
    write_script(script, {"driver": False})
    watch = watched(f"fake:{script}", snapshots)
    wait_until(lambda: bool(snapshots))
    watch.stop()
    assert snapshots[0].gpus == ()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Driver Not Loaded" in caplog.text
    assert DRIVER_RETRY_S >= 10


def test_reading_once_needs_no_thread(tmp_path: Path) -> None:
    """For `--once`."""
    script = tmp_path / "gpus.json"
    write_script(script, {"gpus": [{}, {}]})
    assert len(read_once(f"fake:{script}").gpus) == 2
