"""The sections of what a service keeps of its own traffic, and of what it may change by itself."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from extproc.config.section import Section
from extproc.config.types import Name, StrategyName


class Record(Section):
    """A compact log of every request without any text of it, for 'steersman replay' and 'steersman tune'."""

    file: str | None = Field(default=None, pattern=r"^/")
    """Where it is written, an absolute path; None (nothing is recorded) when left out."""
    bytes_max: int = Field(default=256 * 1024 * 1024, ge=64 * 1024, le=1024**4)
    """Above this the file is put aside as FILE.1 (up to four are kept) and begun anew."""
    prefixes: bool = True
    """Whether hashes of the prompts' beginnings are kept, so that a replay knows of prefix caches. They are
    keyed with a secret that nobody keeps: equal beginnings show as equal, and tell nothing else."""
    repeats: bool = False
    """Whether each request's hash is kept, so that 'steersman replay --cache' says what a cache would save.
    It is keyed with a secret that nobody keeps, and with the tenant: a tenant's equal requests show as
    equal, until the service is started again. It costs a decision some 50 µs for 10 KB."""
    tenants: Literal["named", "hashed"] = "named"
    """Tenants as 'named', or 'hashed' (the beginning of their name's SHA-256: who knows a name finds it)."""


class Tuning(Section):
    """Tuning of a strategy's parameters while the service runs: one bounded change at a time, kept or
    taken back by what the next window shows."""

    enabled: bool = False
    """Off unless this says so."""
    pool: Name | None = None
    """Whose strategy is tuned; the first pool's when left out."""
    strategy: StrategyName = "steer"
    """Which strategy; nothing happens while the pool uses another."""
    parameters: list[str] = Field(default=[], max_length=32)
    """Which of its parameters, numbers alone; all of them when left out."""
    metric: Literal["attainment", "ttft_p99"] = "attainment"
    """What is to become better: the share of requests that meet their class's targets, or the 99th
    percentile of the time to first token."""
    window_s: int = Field(default=300, ge=10, le=86_400)
    """How long is measured before a change, and after it."""
    every_s: int = Field(default=900, ge=10, le=604_800)
    """The least time from one change to the next."""
    requests_min: int = Field(default=500, ge=20, le=10_000_000)
    """A window with fewer requests says nothing."""
    step_max: float = Field(default=0.25, ge=0.01, le=1.0)
    """The largest change, as a share of the value."""
    drift_max: float = Field(default=2.0, ge=1.0, le=100.0)
    """No value is ever further from the file's than by this factor, nor outside the parameter's own range."""
    attainment_drop_max: float = Field(default=0.01, ge=0.0, le=1.0)
    """A change after which attainment is lower by more than this is taken back at once."""
    error_rise_max: float = Field(default=0.005, ge=0.0, le=1.0)
    """A change after which the share of failed requests is higher by more than this is taken back at once."""
    write: bool = False
    """Whether what is kept is written into this file too, and so is in its history; the audit log has every
    move in any case."""

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        if not self.parameters:
            return self
        from extproc.core.strategies import parameters  # late: most files name none

        known: dict[str, Any] = parameters(self.strategy)
        numbers = [name for name, (kind, _) in known.items() if kind in (int, float)]
        wrong = [name for name in self.parameters if name not in numbers]
        if wrong:
            there = ", ".join(numbers) or "none"
            raise ValueError(f"{wrong[0]!r} is no number of strategy {self.strategy!r}; there are: {there}")
        return self
