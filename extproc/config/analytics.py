"""The section of what is kept of the past."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from extproc.config.section import Section


class Analytics(Section):
    """Figures of the past for 'steersman report', by tenant, pool, model and strategy. They are kept in
    sharing's Redis where there is one, where every service adds its own; else in a file, else in memory."""

    enabled: bool = True
    """Whether they are kept."""
    dir: str | None = Field(default=None, pattern=r"^/")
    """The folder of their file (analytics.db), an absolute path; in memory, until the service ends, when left
    out. Not read where sharing is configured."""
    flush_s: float = Field(default=5.0, ge=0.5, le=300.0)
    """How often they are written: a killed service loses no more."""
    minute_hours: int = Field(default=24, ge=1, le=744)
    """How long figures by the minute are kept, in hours."""
    hour_days: int = Field(default=14, ge=1, le=366)
    """How long figures by the hour are kept, in days."""
    retention_days: int = Field(default=30, ge=1, le=3_660)
    """How long figures by the day are kept, in days: everything that a report can know."""
    rows_max: int = Field(default=2_000, ge=10, le=100_000)
    """Tenant, pool, model and strategy together that have a row of their own in one minute or hour; what
    comes beyond is summed up as tenant '(other)'."""
    day_rows_max: int = Field(default=20_000, ge=10, le=1_000_000)
    """The same for a day."""
    bytes_max: int = Field(default=1024**3, ge=1024 * 1024, le=1024**4)
    """The file grows no larger: above it the oldest minutes go before their time, then the oldest hours."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minute_hours > 24 * self.hour_days:
            raise ValueError("minute_hours is longer than hour_days; days are kept longest, then hours")
        if self.hour_days > self.retention_days and "hour_days" in self.model_fields_set:
            raise ValueError("hour_days is longer than retention_days; days are kept longest, then hours")
        if self.minute_hours > 24 * self.retention_days:
            raise ValueError("minute_hours is longer than retention_days; days are kept longest, then hours")
        return self
