"""What a check says, and how all of them are run over the evidence.

A check that finds nothing has passed; one whose evidence could not be had is left out, and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from extproc.doctor.evidence import Evidence

#: Findings of one check that are shown; the rest is counted.
FINDINGS_MAX: Final = 8


class Severity(StrEnum):
    """How bad it is: only an error makes a deployment unwell."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that is not as it should be: what was seen, and what to do."""

    severity: Severity
    seen: str
    mend: str


Sayings = Iterable[Said]


def error(seen: str, mend: str) -> Said:
    """Requests fail, are served wrongly, or anyone may do what they should not."""
    return Said(Severity.ERROR, seen, mend)


def warning(seen: str, mend: str) -> Said:
    """It works now, and will not under load, later, or when something else fails."""
    return Said(Severity.WARNING, seen, mend)


def note(seen: str, mend: str) -> Said:
    """It works; it could be better."""
    return Said(Severity.NOTE, seen, mend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question. `missing` says why it cannot be asked of this evidence, or nothing."""

    id: str
    about: str
    look: Callable[[Evidence], Sayings]
    missing: Callable[[Evidence], str] = lambda _: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A `Said` with its check's name."""

    id: str
    severity: Severity
    seen: str
    mend: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What all checks said."""

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    #: Check → why it could not be made.
    left_out: dict[str, str]

    @property
    def well(self) -> bool:
        """No error; warnings are allowed."""
        return all(each.severity is not Severity.ERROR for each in self.findings)

    def count(self, severity: Severity) -> int:
        """Findings that are so bad."""
        return sum(each.severity is severity for each in self.findings)


def run(checks: Sequence[Check], evidence: Evidence) -> DoctorReport:
    """Ask every check; the worst findings first, else in the checks' order."""
    findings: list[Finding] = []
    passed: list[str] = []
    left_out: dict[str, str] = {}
    for check in checks:
        if why := check.missing(evidence):
            left_out[check.id] = why
            continue
        said = [
            Finding(id=check.id, severity=s.severity, seen=s.seen, mend=s.mend)
            for s in _bounded(check, evidence)
        ]
        findings += said
        if not said:
            passed.append(check.id)
    order = list(Severity)
    findings.sort(key=lambda each: order.index(each.severity))
    return DoctorReport(tuple(findings), tuple(passed), left_out)


def _bounded(check: Check, evidence: Evidence) -> Iterator[Said]:
    """At most FINDINGS_MAX: a fleet of hundreds that is down is one thing to read, not hundreds."""
    said = list(check.look(evidence))
    yield from said[:FINDINGS_MAX]
    if more := said[FINDINGS_MAX:]:
        worst = min(more, key=lambda each: list(Severity).index(each.severity))
        yield Said(worst.severity, f"and {len(more)} more of the same kind", "as above")
