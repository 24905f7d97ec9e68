"""The fault table: what a GPU's errors mean for the traffic of the replica that runs on it.

Owns which XIDs and memory states drain, which reduce and which are noise, and when each is over. An
XID is an event, not a state: it never clears by itself, so every row has a rule of recovery.

Sources: NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors, "Analyzing Xid Errors with the Xid
Catalog", its column of immediate actions, as of October 2025) and its guide to memory errors
(docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt). Where the catalogue resets the GPU or restarts the
machine, the row drains. Where it restarts the application, the row reduces until that has happened: the
contexts that were hit are dead, what came after them is not. Where it says to ignore, there is no row.
NVLink's own numbers reduce rather than drain: whether the link matters depends on what else the replica
spans, and an engine that hangs on it shows by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from extproc.core.reports import GpuReport


class Recovery(Enum):
    """When a fault is over."""

    #: A while without a recurrence.
    TIME = "after a quiet while"
    #: The replica's process was gone and is ready again, or ready for a long quiet while all the same.
    RESTART = "when the replica has restarted"
    #: The replica restarted and its node's agent as well (a reset or a reboot), or an operator says so.
    RESET = "when the GPU was reset"
    #: A state, not an event: it is over when the card no longer shows it.
    SHOWN = "while it shows"


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One row: `factor` is the share of its traffic that a replica keeps (0 drains it)."""

    name: str
    factor: float
    recovery: Recovery
    quiet_s: float = 0.0


#: A replica that has been ready for so long after an error that kills contexts has outlived it.
RESTART_QUIET_S = 3600.0


def _drain(name: str) -> FaultRule:
    return FaultRule(name, 0.0, Recovery.RESET)


def _link(name: str) -> FaultRule:
    return FaultRule(name, 0.25, Recovery.RESTART, quiet_s=RESTART_QUIET_S)


#: XID → fault. What is not listed is noise:
#: - 13, 31, 32, 43, 45, 68, 69 and their like, the application's own errors or the echo of another: the
#:   engine's death, if it comes to that, shows by itself;
#: - 63 (a row was remapped, as it should be), 92 (many errors, all corrected), 121 (corrected on the link
#:   to the CPU), 137, 141, 157, 160, 161: the catalogue ignores them, and speed and answers are whole;
#: - 171, 172: they say more about a 48.
XIDS: dict[int, FaultRule] = {
    46: _drain("GPU stopped processing"),
    48: _drain("double-bit ECC error"),
    # A warning with newer drivers, and unused since Ampere.
    61: FaultRule("internal microcontroller breakpoint", 0.5, Recovery.RESTART, quiet_s=RESTART_QUIET_S),
    62: _drain("internal microcontroller halt"),
    64: _drain("row remap or page retirement failed"),
    74: FaultRule("NVLink error", 0.25, Recovery.TIME, quiet_s=600.0),
    79: _drain("fell off the bus"),
    94: FaultRule("contained memory error", 0.25, Recovery.RESTART, quiet_s=RESTART_QUIET_S),
    95: _drain("uncontained memory error"),
    109: _drain("context switch timeout"),
    110: _drain("security fault"),
    119: _drain("GSP RPC timeout"),
    120: _drain("GSP error"),
    136: FaultRule("NVLink training failed", 0.25, Recovery.RESET),
    140: _drain("unrecovered ECC error"),
    143: _drain("GPU initialisation error"),
    144: _link("NVLink SAW error"),
    145: _link("NVLink RLW error"),
    146: _link("NVLink TLW error"),
    147: _link("NVLink TREX error"),
    148: _link("NVLink control error"),
    149: _link("NVLink NETIR error"),
    150: _link("NVLink MSE error"),
    151: _drain("key rotation error"),
    # It only says that another XID changed what the card needs, and not to what: the text is not in the
    # event. Most often the other one drains; alone it is a warning that something does.
    154: FaultRule("recovery action asked for", 0.25, Recovery.RESET),
    155: FaultRule("NVLink error found by software", 0.25, Recovery.RESET),
    156: FaultRule("resource retirement", 0.25, Recovery.RESET),
    158: _drain("fatal timeout"),
}

#: NVML's clocks-event reasons that say the card is slower than it should be. Idle, application clocks
#: and the software power cap are the normal life of a card and no fault.
THROTTLES = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
IDLE = 0x01
#: Also set for a moment when the clocks change: on an idle card it says nothing.
MOMENTARY = 0x08
#: A throttled card keeps at least this share: slow is not dead.
THROTTLE_FACTOR_MIN = 0.1
#: What a slowdown leaves, by NVML's own words, where the clock does not tell because the card idles.
THROTTLE_FACTOR_IDLE = 0.5


@dataclass(frozen=True, slots=True)
class CardFault:
    """A fault seen on a card; `since_unix_ms` is set for events, None for a state that shows itself."""

    key: str
    fault: FaultRule
    since_unix_ms: int | None = None


#: The states' rows are as fixed as the events'.
_LOST = CardFault("lost", FaultRule("does not answer its driver", 0.0, Recovery.SHOWN))
_REMAP_FAILED = CardFault("remap failed", FaultRule("row remapping failed", 0.0, Recovery.SHOWN))
#: Volatile counts, which begin anew at a reset.
_ECC = CardFault("ecc", FaultRule("uncorrected ECC errors", 0.5, Recovery.SHOWN))
#: Running and new work is unharmed where the card can set bad pages aside meanwhile, as the large ones
#: do; the small ones may meet the bad row again.
_PENDING = CardFault("remap pending", FaultRule("waits for a reset to remap memory", 0.9, Recovery.SHOWN))


def findings(gpu: GpuReport) -> Iterator[CardFault]:
    """Every fault that a card's report shows, newest of each XID only."""
    if gpu.lost:
        yield _LOST
    if gpu.xids:
        # By their order, not by their times: a node's clock may have been set back.
        newest = {code: unix_ms for code, unix_ms in gpu.xids if code in XIDS}
        for code, unix_ms in newest.items():
            yield CardFault(f"xid {code}", XIDS[code], unix_ms)
    if gpu.remap_failed:
        yield _REMAP_FAILED
    if gpu.ecc_uncorrected:
        yield _ECC
    if gpu.remap_pending or gpu.retirement_pending:
        yield _PENDING
    slowed = throttle(gpu)
    if slowed is not None:
        yield CardFault("throttle", slowed)


def throttle(gpu: GpuReport) -> FaultRule | None:
    """A slowed card keeps traffic in proportion to the clock it still has."""
    reasons = gpu.throttle_reasons or 0
    idle = bool(reasons & IDLE)
    named = [name for bit, name in THROTTLES.items() if reasons & bit and not (idle and bit == MOMENTARY)]
    if not named or not gpu.sm_clock_mhz or not gpu.sm_clock_max_mhz:
        return None
    factor = THROTTLE_FACTOR_IDLE if idle else gpu.sm_clock_mhz / gpu.sm_clock_max_mhz
    return FaultRule(", ".join(named), min(1.0, max(THROTTLE_FACTOR_MIN, factor)), Recovery.SHOWN)


#: Others' computing below this is noise (a desktop, a monitor).
OTHERS_PERCENT_MIN = 10
#: A card is full from this share of its memory on; others' part of it counts from this share.
FULL_SHARE, OTHERS_SHARE_MIN = 0.97, 0.05
#: What a full card leaves when others hold a part of it: an engine can allocate nothing any more.
FULL_FACTOR = 0.8


def others(gpu: GpuReport) -> tuple[float, str]:
    """What others on the card leave of its traffic (1 all of it), and why.

    A card is shared by time: beside somebody who would use a share u of it alone, an engine gets 1 / (1 + u).
    """
    factor, why = 1.0, []
    percent = gpu.utilization_others_percent or 0
    if percent >= OTHERS_PERCENT_MIN:
        factor /= 1.0 + percent / 100.0
        why.append(f"others compute {percent} % of it")
    held, used, total = gpu.memory_others_bytes or 0, gpu.memory_used_bytes, gpu.memory_total_bytes
    if used and total and used >= FULL_SHARE * total and held >= OTHERS_SHARE_MIN * total:
        factor *= FULL_FACTOR
        why.append(f"others hold {held / 2**30:.1f} of {total / 2**30:.1f} GiB, and it is full")
    return factor, f"{gpu.uuid}: {', '.join(why)}" if why else ""
