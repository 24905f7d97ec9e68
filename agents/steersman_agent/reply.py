"""What asking a replica gave: an answer or a named failure. Values only; fetch.py makes them."""

from __future__ import annotations

from dataclasses import dataclass

from steersman_agent.state import Symptom


@dataclass(frozen=True, slots=True)
class PageReply:
    """An HTTP answer; `elapsed_s` until its last byte."""

    status: int
    body: bytes
    elapsed_s: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer: what it is evidence of (REFUSED, TIMED_OUT or UNWELL) and why, for people."""

    signal: Symptom
    detail: str


Reply = PageReply | Failure
