"""The section of what outlives the service on its own disk."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from extproc.config.section import Section


class JournalConfig(Section):
    """A journal of quotas on disk, so that a restart forgets nothing: what was used of every limit and
    budget, reservations of requests that still run, credits, and what `adjust` has learnt. Beside it stand
    which replica holds which response (/v1/responses), and what was spilled in the last hour."""

    enabled: bool = True
    """Whether it is kept. `false` switches it off under 'steersman up' too."""
    dir: str | None = Field(default=None, pattern=r"^/")
    """Its folder, an absolute path, of one service alone. When left out 'serve' keeps none, and 'up' keeps it
    in --run-dir, or beside this file (FILE.state). With `sharing` Redis has the quotas."""
    flush_ms: int = Field(default=250, ge=20, le=10_000)
    """How often changes are written: a killed service (SIGKILL) loses no more than twice this."""
    fsync: Literal["always", "second", "never"] = "second"
    """When the disk is made to keep what was written: after each write, once a second, or when the system
    likes. It matters when the machine dies, not when the service does."""
    bytes_max: int = Field(default=64 * 1024 * 1024, ge=64 * 1024, le=1024**4)
    """Above this the file is written anew with what still matters. It is larger only where that is more than
    half of it, which is bounded by `limits`: 100,000 scopes, reservations_max, settled_remembered_max."""
