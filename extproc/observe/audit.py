"""The audit log: who could not prove who they are, and every change of quotas and keys, as JSON lines.

Owns the events and their bounds; how they come into the file is spool.py's. An event holds names, ids,
hashes' beginnings, numbers and addresses, never a key, a token, or anything of a request's content. Events
wait in memory (a quarter of a second in the service) until `flush`; a killed process loses those.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extproc.config.model import Audit
from extproc.observe.spool import FILES_KEPT, Spool, append, aside

__all__ = ["FILES_KEPT", "AuditLog", "append", "aside", "offered"]

#: Failures to prove an identity that are written one by one in a second; the rest is counted.
IDENTITY_LINES_PER_S = 20
#: Events that wait for the disk; the newest are dropped above it, and counted.
PENDING_MAX = 2_000
#: What is repeated of a text that others chose.
TEXT_CHARS_MAX = 200


class AuditLog:
    """One process's way into the log. Nothing is kept or written where no file is configured."""

    def __init__(self, settings: Audit, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self._clock = wall_clock
        self._spool: Spool[dict[str, Any]] = Spool("audit log", waiting_max=PENDING_MAX)
        self._second = 0
        self._lines = 0
        self._more: Counter[str] = Counter()

    @property
    def waiting(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._spool or self._more or self._spool.dropped)

    def identity_failed(
        self, *, source: str, code: str, reason: str, methods: Iterable[str], blocked: bool = False
    ) -> None:
        """A request did not prove who sent it; `blocked`: its source is not listened to for a while now."""
        if self.settings.file is None:
            return
        now_s = self._clock()
        if int(now_s) != self._second:
            self._sum_up()
            self._second, self._lines = int(now_s), 0
        if blocked:
            self.event("identity_blocked", source=source[:TEXT_CHARS_MAX])
        self._lines += 1
        if self._lines > IDENTITY_LINES_PER_S:
            self._more[code] += 1
            return
        self.event(
            "identity_failed",
            source=source[:TEXT_CHARS_MAX],
            code=code,
            reason=reason[:TEXT_CHARS_MAX],
            methods=list(methods),
        )

    def event(self, name: str, **facts: object) -> None:
        """Note an event; `flush` writes it."""
        if self.settings.file is None:
            return
        if not self._spool.add({"time": _time(self._clock()), "event": name, **facts}):
            self.counts["audit.dropped"] += 1

    def flush(self, *, last: bool = False) -> None:
        """Write what waits; never raises. One at a time: a second caller waits only at the `last`."""
        with self._spool.writing(wait=last) as mine:
            if not mine:
                return
            if last or int(self._clock()) != self._second:
                self._sum_up()
            events, dropped = self._spool.take()
            if dropped:
                events.append({"time": _time(self._clock()), "event": "dropped", "count": dropped})
            if events and self.settings.file is not None:
                self._write(Path(self.settings.file), events)

    def _sum_up(self) -> None:
        more, self._more = self._more, Counter()
        if more:
            self.event("identity_failed_more", count=more.total(), by_code=dict(more))

    def _write(self, path: Path, events: list[dict[str, Any]]) -> None:
        data = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        if not self._spool.write(path, data, lines=len(events), bytes_max=self.settings.bytes_max):
            self.counts["audit.lost"] += len(events)


def offered(evidence: Any) -> list[str]:
    """By what means a request tried to prove who sent it."""
    tried: Mapping[str, object] = {
        "key": (evidence.authorization and evidence.jwt is None) or evidence.api_key,
        "jwt": evidence.jwt is not None or evidence.jwt_failure,
        "certificate": evidence.sans,
        "proxy": evidence.proxy_tenant,
    }
    return [method for method, sent in tried.items() if sent]


def _time(unix_s: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))
    return f"{whole}.{int(unix_s % 1 * 1000):03d}Z"
