"""The way between a simulated edge and its centre: `way=40:jitter=0.2:cut_s=30`, and who takes it.

Owns the value, its checks and its short form; what it makes happen is `sites.py`'s. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from extproc.core.tiers import TierRule


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteWay:
    """Between two sites. `ms` is the shortest round trip; each direction takes up to the share `jitter` more.

    The centre is asked each `digest_s` what it offers, and takes `late_ms` to answer. From the
    share `cut_at` of the workload's time on nothing passes for `cut_s`, which either side notices after
    `notice_s`. `others` are requests that other sites send to the centre, for each request that comes here,
    of like lengths. `rule` is the edge's.
    """

    ms: float
    jitter: float = 0.2
    digest_s: float = 1.0
    late_ms: float = 5.0
    cut_at: float = 0.5
    cut_s: float = 0.0
    notice_s: float = 2.0
    others: float = 0.0
    rule: TierRule = field(default_factory=TierRule)

    def problems(self) -> list[str]:
        """What cannot be, a line each."""
        found = self.rule.problems()
        if min(self.ms, self.jitter, self.late_ms, self.cut_s, self.notice_s, self.others) < 0:
            found.append("no time and no share of a way may be negative")
        if self.digest_s <= 0.0:
            found.append(f"digest_s must be above 0, not {self.digest_s:g}")
        if not 0.0 <= self.cut_at <= 1.0:
            found.append(f"cut_at must lie in 0..1, not {self.cut_at:g}")
        return found


_OWN: Final = {each.name: type(each.default) for each in fields(SiteWay) if each.name not in ("ms", "rule")}
_RULE: Final = {
    each.name: type(each.default) for each in fields(TierRule) if isinstance(each.default, int | float)
}


def way_of(part: str) -> SiteWay:
    """A way from its short form, `way=MS[:KEY=VALUE…]`; keys are its own and the rule's. ValueError."""
    head, *settings = part.split(":")
    way = SiteWay(ms=_number(head, float))
    known = {**_OWN, **_RULE}
    for setting in settings:
        key = setting.partition("=")[0]
        if key not in known:
            raise ValueError(f"unknown setting {key!r} of a way; there are {', '.join(known)}")
        changed: dict[str, Any] = {key: _number(setting, known[key])}
        way = replace(way, **changed) if key in _OWN else replace(way, rule=replace(way.rule, **changed))
    if problems := way.problems():
        raise ValueError("; ".join(problems))
    return way


def _number(setting: str, kind: type) -> Any:
    value = setting.partition("=")[2]
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{setting} is no {kind.__name__}") from None


def described(way: SiteWay) -> str:
    """A line of it, with what is not as usual."""
    usual = SiteWay(ms=way.ms)
    changes: Sequence[tuple[object, object, dict[str, Any]]] = (
        (way, usual, _OWN),
        (way.rule, usual.rule, _RULE),
    )
    unlike = [
        f", {name} {value:g}"
        for own, ordinary, names in changes
        for name in names
        if (value := getattr(own, name)) != getattr(ordinary, name)
    ]
    return f"a way of {way.ms:g} ms to the centre{''.join(unlike)}"
