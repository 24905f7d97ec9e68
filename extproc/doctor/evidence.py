"""What was seen of a deployment, as values: the only thing that checks look at.

What could not be had is a `Failed` with the reason, so that a check can tell "it is not so" from "nobody
answered". Times are unix milliseconds unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from extproc.config.model import Config


@dataclass(frozen=True, slots=True)
class Failed:
    """It could not be had."""

    why: str


@dataclass(frozen=True, slots=True)
class Elsewhere(Failed):
    """A service that may well serve, and tells its figures on its own machine alone."""


NOT_ASKED = Failed("not asked")
NO_PROBE = Failed("no prompt was sent; give a key with --key (or --probe where none is needed)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSeen:
    """The service at one of its addresses: its health and two readings of its status, a moment apart."""

    address: str
    serving: bool
    status: Mapping[str, Any]
    later: Mapping[str, Any]
    #: Its clock less ours; None where it does not say.
    clock_ahead_ms: int | None = None

    def grown(self, *path: str) -> int:
        """By how much a count went up between the two readings."""
        return self.count(*path) - _count(self.status, path)

    def count(self, *path: str) -> int:
        """A count in the last reading; nought where there is none."""
        return _count(self.later, path)


def _count(status: Mapping[str, Any], path: tuple[str, ...]) -> int:
    found: Any = status
    for part in path:
        found = found.get(part, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, int) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySeen:
    """Envoy's admin pages, decoded."""

    admin: str
    server_info: Mapping[str, Any]
    config_dump: Mapping[str, Any]
    clusters: Mapping[str, Any]
    stats: Mapping[str, int]
    clock_ahead_ms: int | None = None

    @property
    def version(self) -> tuple[int, ...]:
        """`1.40.0` as numbers; empty where it is none."""
        parts = str(self.server_info.get("version", "")).split("/")
        number = parts[1].partition("-")[0] if len(parts) > 1 else ""
        return tuple(int(part) for part in number.split(".") if part.isdecimal())


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What a model server says it is. `engine` None: it answers, but as none that is known."""

    address: str
    engine: str | None = None
    version: str = ""
    models: tuple[str, ...] = ()
    max_concurrent: int | None = None
    kv_capacity_tokens: int | None = None
    prefill_budget_tokens: int | None = None
    #: Status of `/health`; None where it has none.
    health: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSeen:
    """Redis as a client sees it. None for what it does not tell."""

    place: str
    version: str
    latency_ms: float
    clock_ahead_ms: int
    memory_max_bytes: int | None
    memory_used_bytes: int | None
    eviction: str | None
    #: What a write came to; "" for well.
    write_failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSeen:
    """A prompt of one token that went through the gateway, and what became known of it."""

    status: int
    body: str
    elapsed_ms: float
    settled: bool
    #: None: not asked for, since the answer was no stream.
    first_token: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSeen:
    """Of the machine that this runs on."""

    files_open_max: int
    #: What a process may have: of the machine, or of the control group where that is less; 0 where unknown.
    memory_bytes: int = 0
    #: File that is written to → bytes free there, or what is wrong with the place.
    disks: Mapping[str, int | Failed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that checks may look at."""

    config: Config
    file: Path
    now: datetime
    machine: MachineSeen
    services: Mapping[str, ServiceSeen | Failed] = field(default_factory=dict)
    envoy: EnvoySeen | Failed = NOT_ASKED
    #: Status and body of the gateway's own health route, through Envoy and the service.
    gateway: tuple[int, str] | Failed = NOT_ASKED
    backends: Mapping[str, Backend | Failed] = field(default_factory=dict)
    redis: RedisSeen | Failed = NOT_ASKED
    probe: ProbeSeen | Failed = NO_PROBE

    @property
    def service(self) -> ServiceSeen | None:
        """The first service that answered."""
        return next((each for each in self.services.values() if isinstance(each, ServiceSeen)), None)
