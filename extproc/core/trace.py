"""How a placement came about: every endpoint's score, its terms, and what removed it, as `place` saw them.

Owns one account of it, for who asks what would be done now (whole) and for the decisions that are remembered
(in brief: the choice's terms, the named ones' forecasts, and the first few of those removed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from extproc.core.candidates import CANDIDATE, REMOVED, Needs
from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast, Values, forecasts
from extproc.core.outcome import LATER_MS, EndpointRow, Reason
from extproc.core.strategies import SchedulingContext, Strategy, Work

#: Removed endpoints that a brief trace tells of; all are counted in its reason.
REMOVED_TOLD_MAX = 4


class PlacementTrace:
    """Filled by `place`, told by `rows`; `whole` says of every endpoint."""

    __slots__ = ("_forecasts", "_named", "_reason", "_standing", "_terms", "degraded", "strategy", "whole")

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        self.strategy = self.degraded = ""
        self._reason: Reason | None = None
        self._named: Sequence[str] = ()
        self._standing: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._terms: dict[str, Mapping[str, float]] = {}
        self._forecasts: dict[str, Values] = {}

    def __len__(self) -> int:
        """Values that it holds on to."""
        return sum(map(len, self._terms.values())) + sum(map(len, self._forecasts.values()))

    def before(self, endpoints: Sequence[Endpoint], needs: Needs, now_ns: int) -> None:
        """What each is before any strategy."""
        self._standing = {each.address: needs.standing(each, now_ns) for each in endpoints}

    def removed(self, endpoints: Sequence[Endpoint], considered: Sequence[Endpoint], needs: Needs) -> None:
        """In brief: why the first few were not considered."""
        kept = set(considered)
        for endpoint in endpoints:
            if endpoint not in kept:
                self._standing[endpoint.address] = REMOVED, (needs.cause(endpoint),)
                if len(self._standing) >= REMOVED_TOLD_MAX:
                    break

    def ranked(
        self,
        strategy: Strategy,
        reason: Reason,
        endpoints: Sequence[Endpoint],
        named: Sequence[Endpoint],
        found: Sequence[Values],
        work: Work,
        at: SchedulingContext,
    ) -> None:
        """The strategy has given the first of these endpoints its scores; `named`, for which `found` is
        forecast, go into the decision."""
        self._reason, self._named = reason, [endpoint.address for endpoint in named]
        self._forecasts = dict(zip(self._named, found, strict=True))
        if not self.whole:
            first = named[0]
            self._terms[first.address] = strategy.explain(first, work, Forecast._make(found[0]), at=at)
            return
        for endpoint, values in zip(endpoints, forecasts(endpoints, work, cached=at.cached), strict=True):
            self._forecasts[endpoint.address] = values
            expected = Forecast._make(values)
            self._terms[endpoint.address] = strategy.explain(endpoint, work, expected, at=at)
        if strategy.binds_late:
            for endpoint, score in zip(endpoints, reason.scores, strict=False):
                if score >= LATER_MS:
                    # A retry may go where the request itself would wait.
                    why = strategy.holds_back(endpoint, endpoints, work, at=at)
                    _, before = self._standing.get(endpoint.address, (CANDIDATE, ()))
                    self._standing[endpoint.address] = "waits", (*before, *why)

    def rows(self) -> tuple[EndpointRow, ...]:
        """The chosen, then by score, then those without one."""
        scores: dict[str, float | None] = {}
        if self._reason is not None:
            for i, each in enumerate(self._reason.candidates):
                scores[each.address] = self._reason.scores[i] if i < len(self._reason.scores) else None
        rows = []
        for address in {**scores, **self._standing}:
            verdict, why = self._standing.get(address, (CANDIDATE, ()))
            values = self._forecasts.get(address)
            if address in self._named:
                verdict = f"chosen #{self._named.index(address) + 1}"
            rows.append(
                EndpointRow(
                    address=address,
                    verdict=verdict,
                    why=why,
                    score=scores.get(address),
                    terms=self._terms.get(address, {}),
                    forecast=Forecast._make(values)._asdict() if values is not None else {},
                )
            )
        return tuple(sorted(rows, key=_order))


def _order(row: EndpointRow) -> tuple[bool, str, bool, float]:
    chosen = row.verdict.startswith("chosen")
    return not chosen, row.verdict if chosen else "", row.score is None, row.score or 0.0
