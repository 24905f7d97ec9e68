"""Checks of the Redis that services share through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from extproc.doctor.checks.machine import cached_bytes
from extproc.doctor.checks.service import CLOCK_MS_MAX, without_service
from extproc.doctor.evidence import Evidence, Failed, RedisSeen
from extproc.doctor.finding import Check, Said, error, note, warning

VERSION_MIN: Final = (6, 2)
#: Half of what a decision would wait for it (law: Redis within its budget).
LATENCY_MS_MAX: Final = 2.5
#: From this share of its bound on, writes will soon be refused.
MEMORY_SHARE_MAX: Final = 0.9
#: What Redis should have beside the answers of the cache: its own tables, and quotas.
CACHE_ROOM: Final = 1.5


def _missing(evidence: Evidence) -> str:
    if evidence.config.sharing is None:
        return "the configuration has no 'sharing' section"
    return "not asked (--offline)" if not evidence.services else ""


def _not_there(evidence: Evidence) -> str:
    return _missing(evidence) or (
        f"Redis: {evidence.redis.why}" if isinstance(evidence.redis, Failed) else ""
    )


def _seen(evidence: Evidence) -> RedisSeen:
    assert isinstance(evidence.redis, RedisSeen)
    return evidence.redis


def reachable(evidence: Evidence) -> Iterator[Said]:
    """It answers, and takes what is written."""
    if isinstance(evidence.redis, Failed):
        yield error(
            f"Redis does not answer: {evidence.redis.why}; each service decides by its own local share",
            "start Redis, or correct sharing.redis (address, password, TLS)",
        )
    elif evidence.redis.write_failed:
        yield error(
            f"Redis {evidence.redis.place} refuses writes: {evidence.redis.write_failed}",
            "give the user rights to write keys with sharing.prefix, and the server room (maxmemory)",
        )


def connected(evidence: Evidence) -> Iterator[Said]:
    """Each service has its connection, and its books are reconciled."""
    for address, seen in evidence.services.items():
        if isinstance(seen, Failed):
            continue
        if not seen.later.get("sharing", {}).get("connected"):
            yield error(
                f"the service at {address} is not connected to Redis",
                "see its log for the reason; sharing.redis must be reachable from where it runs",
            )
        elif not seen.later.get("quotas", {}).get("reconciled", True):
            yield note(
                f"the service at {address} has not reconciled its books with Redis yet",
                "look again in a moment",
            )
        elif seen.later.get("cache", {}).get("away"):
            yield error(
                f"the service at {address} cannot keep answers in Redis: nothing is answered from the cache",
                "see its log for the reason; its user needs rights to keys with sharing.prefix, and scripts",
            )


def version(evidence: Evidence) -> Iterator[Said]:
    """New enough for the scripts."""
    text = _seen(evidence).version
    found = tuple(int(part) for part in text.split(".") if part.isdecimal())
    if found and found < VERSION_MIN:
        yield warning(
            f"Redis {text} is older than {'.'.join(map(str, VERSION_MIN))}", "use Redis 7 or Valkey 8"
        )


def latency(evidence: Evidence) -> Iterator[Said]:
    """Near enough."""
    found = _seen(evidence)
    if found.latency_ms > LATENCY_MS_MAX:
        yield warning(
            f"Redis takes {found.latency_ms:.1f} ms to answer from here; a decision waits for it for 5 ms "
            "at the most",
            "put it into the services' own network",
        )


def eviction(evidence: Evidence) -> Iterator[Said]:
    """Quotas are no cache: what is evicted was used and is forgotten."""
    found = _seen(evidence)
    if found.memory_max_bytes and found.eviction and found.eviction != "noeviction":
        yield error(
            f"Redis evicts keys when it is full ({found.eviction}): tenants' use is forgotten, quotas leak",
            "set maxmemory-policy noeviction, or give Steersman a Redis of its own",
        )
    if found.memory_max_bytes and (found.memory_used_bytes or 0) > MEMORY_SHARE_MAX * found.memory_max_bytes:
        yield warning(
            f"Redis uses {(found.memory_used_bytes or 0) / found.memory_max_bytes:.0%} of its maxmemory",
            "raise maxmemory",
        )


def room(evidence: Evidence) -> Iterator[Said]:
    """Answers and questions leave room for quotas, which are in the same Redis."""
    cache, most = evidence.config.cache, _seen(evidence).memory_max_bytes
    if cache is None or cache.store != "redis" or not most:
        return
    wanted, named = cached_bytes(evidence.config)
    if most < CACHE_ROOM * wanted:
        yield warning(
            f"answers may take {wanted >> 20} MiB ({named}) of Redis' {most >> 20} MiB "
            "(maxmemory): when it is full, quotas are not shared",
            f"lower {named.replace(' + ', ' or ')}, or raise maxmemory",
        )


def clock(evidence: Evidence) -> Iterator[Said]:
    """Its clock is what shared quotas go by."""
    ahead_ms = _seen(evidence).clock_ahead_ms
    if abs(ahead_ms) > CLOCK_MS_MAX:
        way = "ahead of" if ahead_ms > 0 else "behind"
        yield warning(
            f"Redis' clock is {abs(ahead_ms) / 1000:.1f} s {way} this machine's",
            "synchronise the clocks (chrony or systemd-timesyncd)",
        )


def _both(evidence: Evidence) -> str:
    return _missing(evidence) or without_service(evidence)


CHECKS: Final = (
    Check(id="redis.reachable", about="Redis answers and takes writes", look=reachable, missing=_missing),
    Check(id="redis.connected", about="the services are connected to it", look=connected, missing=_both),
    Check(id="redis.version", about="it is new enough", look=version, missing=_not_there),
    Check(id="redis.latency", about="it is near", look=latency, missing=_not_there),
    Check(id="redis.eviction", about="it forgets nothing", look=eviction, missing=_not_there),
    Check(id="redis.room", about="what the caches keep leaves room in it", look=room, missing=_not_there),
    Check(id="redis.clock", about="its clock agrees", look=clock, missing=_not_there),
)
