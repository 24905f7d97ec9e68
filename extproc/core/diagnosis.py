"""From what is seen of an endpoint to the causes of its health.

Owns which observation becomes which cause (health.py has the causes' mechanics, faults.py the table of
GPU faults) and the memory that this takes: which events are over, what the last answers were like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from extproc.core.endpoint import Endpoint
from extproc.core.faults import CardFault, FaultRule, Recovery, findings, others
from extproc.core.health import Cause, CauseKind, follow_pool
from extproc.core.outcome import End, Outcome
from extproc.core.reach import Look, Reach
from extproc.core.reports import SERVING, ReplicaReport, ReportedState

#: How often a healthy agent reports at the least.
HEARTBEAT_NS = 1_000_000_000
#: Confidence in a report is whole up to this age, and falls to STALE_FACTOR at STALE_NS.
FRESH_NS, STALE_NS = 3 * HEARTBEAT_NS // 2, 3 * HEARTBEAT_NS
STALE_FACTOR = 0.5
#: What a stale agent last said of a replica's state silences it no longer than this.
STATE_BELIEVED_NS = 10 * HEARTBEAT_NS
#: Beside neighbours that report, one that never did counts like a stale one.
NEVER_SEEN_FACTOR = 0.5
#: What each state leaves of the traffic.
STATE_CAUSES = {
    ReportedState.LOADING: Cause(CauseKind.HARD, 0.0, "loading"),
    ReportedState.GONE: Cause(CauseKind.HARD, 0.0, "gone"),
    ReportedState.HUNG: Cause(CauseKind.HARD, 0.0, "hung"),
    ReportedState.WRONG_MODEL: Cause(CauseKind.HARD, 0.0, "serves another model"),
    ReportedState.DEGRADED: Cause(CauseKind.SUSPICION, 0.5, "degraded"),
}
PROBE_FACTOR = 0.7
#: It answers 401 or 403 to what Envoy sends, with the pool's key or without one.
KEY_REFUSED = Cause(CauseKind.SUSPICION, 0.2, "refuses requests for their key: see the pool's upstream.key")
#: Half-life of what answers have taught, and how many answers make half a certainty.
ANSWERS_HALF_LIFE_NS = 10_000_000_000
ANSWERS_HALF_SURE = 4.0
#: Fewer answers than this teach nothing any more.
ANSWERS_FORGOTTEN = 0.01
#: Fewer failures than this are over: one alone is after one half-life.
FAILURES_HELD = 0.5
#: A mean time to first token above this multiple of the pool's median is suspect, in proportion.
SLOW_RATIO = 3.0
#: Of two there is no majority to say what is usual, and one may simply be the faster hardware.
SLOW_RATIO_OF_TWO = 5.0
SLOW_SAMPLES_MIN = 5.0
TTFT_WEIGHT = 0.2
#: GPU events remembered of an endpoint, as many again that are over: whole nodes have fewer.
EVENTS_MAX = 256


@dataclass(slots=True)
class _Active:
    """An event on a GPU that counts until its rule says that it is over."""

    finding: CardFault
    uuid: str
    since_ns: int
    boot_id: int
    restarted: bool = False
    rebooted: bool = False

    def over(self, state: ReportedState, now_ns: int) -> bool:
        fault = self.finding.fault
        quiet = fault.quiet_s > 0.0 and now_ns - self.since_ns >= fault.quiet_s * 1e9
        match fault.recovery:
            case Recovery.TIME:
                return quiet
            case Recovery.RESTART:
                # Ready for so long after it, the replica was not hit, or restarted before we listened.
                return state is ReportedState.READY and (self.restarted or quiet)
            case Recovery.RESET:
                return state is ReportedState.READY and self.restarted and self.rebooted
            case Recovery.SHOWN:
                return True


class Diagnosis:
    """What one endpoint's health is made of."""

    __slots__ = (
        "_active",
        "_answers",
        "_answers_ns",
        "_cleared",
        "_failures",
        "_ttft_ns",
        "endpoint",
        "newcomer",
        "ordered_drain",
        "reach",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        #: By card and code; oldest first, at most EVENTS_MAX.
        self._active: dict[tuple[str, str], _Active] = {}
        #: The events that are over, by when they were: an agent repeats them as long as it lives.
        self._cleared: dict[tuple[str, str], int | None] = {}
        self._answers = 0.0
        self._failures = 0.0
        self._answers_ns = 0
        self._ttft_ns: float | None = None
        #: An operator asked for it; holds whatever the agent says.
        self.ordered_drain = False
        #: What our own looks say, where no agent does.
        self.reach = Reach()
        #: Registered by an agent, and not yet seen to answer us.
        self.newcomer = False

    @property
    def unspoken(self) -> bool:
        """Whether no agent speaks of it whose word is enough, so that we look ourselves."""
        endpoint = self.endpoint
        if self.newcomer or endpoint.reported_ns is None or endpoint.stale or endpoint.report is None:
            return True
        return not endpoint.report.own and endpoint.report.state not in SERVING

    def registered(self) -> None:
        """An agent has brought it: no traffic before it has answered us."""
        self.newcomer = True
        self.endpoint.health.set("newcomer", Cause(CauseKind.HARD, 0.0, "registered, not yet seen to answer"))

    def looked(self, found: Look, *, now_ns: int, neighbours_reached: bool, why: str = "") -> bool:
        """We have looked at its health page; whether it is back from having been down."""
        health, was_down = self.endpoint.health, self.reach.down
        cause = self.reach.look(found, now_ns=now_ns, neighbours_reached=neighbours_reached, why=why)
        if not self.unspoken:
            return False
        health.set("reach", cause)
        if self.newcomer and found is Look.ANSWERED:
            self.newcomer = False
            health.set("newcomer", None)
            health.begin(now_ns=now_ns)
        back = was_down and not self.reach.down
        if back:
            health.begin(now_ns=now_ns)
        return back

    def refresh_drain(self) -> None:
        """Draining is what the operator or the agent says, either."""
        report = self.endpoint.report
        said = report is not None and report.own and report.state is ReportedState.DRAINING
        self.endpoint.draining = self.ordered_drain or said

    def heard(self, report: ReplicaReport, *, now_ns: int) -> None:
        """Take an agent's report."""
        endpoint, health = self.endpoint, self.endpoint.health
        before = endpoint.report.state if endpoint.report is not None else None
        endpoint.heard(report, now_ns=now_ns)
        self.refresh_drain()
        cause = STATE_CAUSES.get(report.state)
        if cause is not None and cause.kind is CauseKind.HARD and not report.own:
            cause = _suspect(STALE_FACTOR, f"{cause.detail}, says node {report.node} that has no networks")
        health.set("state", cause)
        if not self.unspoken:
            health.set("reach", None)
        failures = report.probe_failures
        detail = f"{failures} probes failed"
        health.set("probe", Cause(CauseKind.SUSPICION, PROBE_FACTOR**failures, detail) if failures else None)
        self._faults(report, now_ns)
        # A replica is as slow as the slowest card that it spans.
        left, why = min((others(gpu) for gpu in report.gpus), default=(1.0, ""))
        health.set("others", Cause(CauseKind.EVIDENCE if report.own else CauseKind.SUSPICION, left, why))
        if before is ReportedState.LOADING and report.state is ReportedState.READY:
            health.begin(now_ns=now_ns)

    def answered(self, outcome: Outcome, *, now_ns: int, failed: bool) -> None:
        """An answer of this endpoint ended, or an attempt on it failed."""
        self._fade(now_ns)
        self._answers += 1.0
        self._failures += failed
        if not failed:
            self.reach.served(now_ns=now_ns)
        self.endpoint.health.set("key", KEY_REFUSED if outcome.key_refused and failed else None)
        if outcome.ttft_ns is not None and outcome.end is End.OK and not failed:
            before = self._ttft_ns
            seen = float(outcome.ttft_ns)
            self._ttft_ns = seen if before is None else before + TTFT_WEIGHT * (seen - before)

    def clear_faults(self) -> list[str]:
        """An operator's word that the GPU was seen to: its events are over. Returns their names."""
        names = [f"{key} on {uuid}" for uuid, key in self._active]
        for event in list(self._active):
            self._forget(event)
        self._show({})
        return names

    @property
    def mean_ttft_ns(self) -> float | None:
        """The moving mean of its times to first token, None before there are enough."""
        return self._ttft_ns if self._answers >= SLOW_SAMPLES_MIN else None

    def age(self, *, now_ns: int, neighbours_report: bool, as_of_ns: int | None = None) -> None:
        """What the passing of time does: confidence falls, answers fade. `as_of_ns` is telemetry's."""
        endpoint, health = self.endpoint, self.endpoint.health
        if self._answers > 0.0:
            self._fade(now_ns)
            self._errors()
        if endpoint.reported_ns is None:
            unseen = (
                Cause(CauseKind.SUSPICION, NEVER_SEEN_FACTOR, "never seen") if neighbours_report else None
            )
            health.set("telemetry", unseen)
            return
        age_ns = (now_ns if as_of_ns is None else as_of_ns) - endpoint.reported_ns
        if age_ns <= FRESH_NS:
            endpoint.stale = False
            health.set("telemetry", None)
            return
        endpoint.stale = age_ns > STALE_NS
        passed = min(1.0, (age_ns - FRESH_NS) / (STALE_NS - FRESH_NS))
        factor = 1.0 - (1.0 - STALE_FACTOR) * passed
        health.set("telemetry", _suspect(factor, f"silent for {age_ns / 1e9:.0f} s"))
        if endpoint.stale:
            endpoint.forget_foreign()
            endpoint.cache.silent()
        state = health.causes.get("state")
        if age_ns > STATE_BELIEVED_NS and state is not None and state.kind is CauseKind.HARD:
            health.set("state", _suspect(STALE_FACTOR, f"{state.detail} when last heard"))

    def compare(self, pool_ttft_ns: float | None, *, ratio_max: float = SLOW_RATIO) -> None:
        """Judge its pace against its pool's."""
        own = self.mean_ttft_ns
        ratio = own / pool_ttft_ns if own and pool_ttft_ns else 1.0
        if ratio > ratio_max:
            detail = f"{ratio:.1f} × the pool's time to first token"
            self.endpoint.health.set("latency", _suspect(ratio_max / ratio, detail))
        else:
            self.endpoint.health.set("latency", None)

    def _errors(self) -> None:
        if self._failures < FAILURES_HELD:
            self.endpoint.health.set("errors", None)
            return
        rate = self._failures / self._answers
        sure = self._answers / (self._answers + ANSWERS_HALF_SURE)
        self.endpoint.health.set("errors", _suspect(1.0 - rate * sure, f"{rate:.0%} of answers failed"))

    def _faults(self, report: ReplicaReport, now_ns: int) -> None:
        seen = [(gpu.uuid, finding) for gpu in report.gpus for finding in findings(gpu)]
        if not seen and not self._active:
            if self.endpoint.health.causes:
                self._show({})
            return
        for event, active in list(self._active.items()):
            active.restarted |= report.state in (ReportedState.LOADING, ReportedState.GONE)
            active.rebooted |= report.boot_id != active.boot_id
            if active.over(report.state, now_ns):
                self._forget(event)
        # One row on several cards counts once: a replica is as slow as the slowest card it spans.
        worst: dict[str, tuple[FaultRule, str]] = {}
        for uuid, finding in seen:
            if finding.since_unix_ms is None:
                _worse(worst, finding, uuid)
            else:
                self._happened(report, finding, uuid, now_ns)
        for active in self._active.values():
            _worse(worst, active.finding, active.uuid)
        self._show(worst)

    def _happened(self, report: ReplicaReport, finding: CardFault, uuid: str, now_ns: int) -> None:
        """Take an event, unless it is known already or over."""
        event, since = (uuid, finding.key), finding.since_unix_ms
        known = self._active.get(event)
        if (known is not None and known.finding.since_unix_ms == since) or self._cleared.get(event) == since:
            return
        # Told after our own start, it may be old: a quiet while counts from when it was.
        ago_ms = report.sent_unix_ms - since if report.sent_unix_ms and since is not None else 0
        active = _Active(finding, uuid, now_ns - max(0, ago_ms) * 1_000_000, report.boot_id)
        self._active.pop(event, None)
        self._active[event] = active
        if active.over(report.state, now_ns):
            self._forget(event)
        elif len(self._active) > EVENTS_MAX:
            self._forget(next(iter(self._active)))

    def _show(self, worst: Mapping[str, tuple[FaultRule, str]]) -> None:
        """Make these the causes that are the GPUs'."""
        health = self.endpoint.health
        for name in [name for name in health.causes if name.startswith("gpu ")]:
            if name.removeprefix("gpu ") not in worst:
                health.set(name, None)
        for key, (fault, uuid) in worst.items():
            said = self.endpoint.report
            kind = CauseKind.HARD if fault.factor <= 0.0 else CauseKind.EVIDENCE
            if said is not None and not said.own:
                kind = CauseKind.SUSPICION
            detail = f"{fault.name} on {uuid} ({fault.recovery.value})"
            health.set(f"gpu {key}", Cause(kind, fault.factor, detail))

    def _forget(self, event: tuple[str, str]) -> None:
        self._cleared.pop(event, None)
        self._cleared[event] = self._active.pop(event).finding.since_unix_ms
        if len(self._cleared) > EVENTS_MAX:
            del self._cleared[next(iter(self._cleared))]

    def _fade(self, now_ns: int) -> None:
        passed_ns = now_ns - self._answers_ns
        if passed_ns > 0:
            self._answers_ns = now_ns
            if self._answers > 0.0:
                keep = 0.5 ** (passed_ns / ANSWERS_HALF_LIFE_NS)
                self._answers *= keep
                self._failures *= keep
                if self._answers < ANSWERS_FORGOTTEN:
                    self._answers = self._failures = 0.0


def step_pool(diagnoses: Sequence[Diagnosis], *, now_ns: int, as_of_ns: int | None = None) -> bool:
    """Let time pass over a pool; true when its telemetry is stale everywhere it ever was.

    Called a few times a second: decisions read the results. Telemetry is aged as of `as_of_ns` where that is
    given (absence.py).
    """
    as_of_ns = now_ns if as_of_ns is None else as_of_ns
    reported = [ns for d in diagnoses if (ns := d.endpoint.reported_ns) is not None]
    fresh = bool(reported) and as_of_ns - max(reported) <= STALE_NS
    means = [mean for d in diagnoses if (mean := d.mean_ttft_ns) is not None]
    pool_ttft_ns = median_low(means) if len(means) > 1 else None
    ratio_max = SLOW_RATIO if len(means) > 2 else SLOW_RATIO_OF_TWO
    for diagnosis in diagnoses:
        diagnosis.age(now_ns=now_ns, neighbours_report=fresh, as_of_ns=as_of_ns)
        diagnosis.compare(pool_ttft_ns, ratio_max=ratio_max)
    follow_pool([d.endpoint.health for d in diagnoses], now_ns=now_ns)
    for diagnosis in diagnoses:
        diagnosis.endpoint.refresh()
    return bool(reported) and not fresh


def _worse(worst: dict[str, tuple[FaultRule, str]], finding: CardFault, uuid: str) -> None:
    known = worst.get(finding.key)
    if known is None or finding.fault.factor < known[0].factor:
        worst[finding.key] = (finding.fault, uuid)


def _suspect(factor: float, detail: str) -> Cause:
    return Cause(CauseKind.SUSPICION, min(1.0, max(0.0, factor)), detail)
