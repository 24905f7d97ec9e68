"""A gateway whose tenants' answers are cached, and what is asked of it again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from cache_engine import CacheEngine
from gateway import KEYS, Gateway, chat_pool, wait_for
from replicas import Replicas, specs

from extproc.core.tenant import hash_key

MESSAGES = [{"role": "user", "content": "Which way to the harbour? [[sim:out=12]]"}]


def tenant(name: str, cache: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A tenant of KEYS whose answers are cached as told."""
    return {
        "name": name,
        "keys": [{"sha256": hash_key(KEYS[name])}],
        "cache": cache or {"mode": "on"},
        **more,
    }


@contextlib.contextmanager
def caching(
    *tenants: dict[str, Any], replicas: int = 1, cache: dict[str, Any] | None = None, **sim: Any
) -> Iterator[tuple[Gateway, Replicas]]:
    """A started gateway over simulated replicas of one pool."""
    listed = list(tenants) or [tenant("acme"), tenant("globex")]
    with (
        Replicas(specs(replicas, **sim)) as running,
        Gateway(chat_pool(running.addresses), tenants=listed, cache=cache or {}) as gateway,
    ):
        yield gateway, running


@contextlib.contextmanager
def over_an_engine(**sections: Any) -> Iterator[tuple[Gateway, CacheEngine]]:
    """A started gateway over one engine whose answers a test writes; nothing is retried unless told."""
    sections = {"gateway": {"retries": 0}, **sections}
    with (
        CacheEngine() as engine,
        Gateway(
            chat_pool([engine.address], ask_usage=False),
            tenants=[tenant("acme"), tenant("globex")],
            cache={},
            **sections,
        ) as gateway,
    ):
        yield gateway, engine


def figures(gateway: Gateway) -> dict[str, Any]:
    """What the service counted of its cache."""
    found: dict[str, Any] = gateway.status()["cache"]
    return found


def looked(gateway: Gateway, outcome: str, tenant: str = "acme") -> int:
    """How often a tenant's requests came to that."""
    count: int = figures(gateway)["requests"].get(tenant, {}).get(outcome, 0)
    return count


def served(gateway: Gateway) -> int:
    """Requests that were sent to a replica."""
    routed: int = gateway.status()["counts"].get("routed", 0)
    return routed


def kept(gateway: Gateway, count: int) -> None:
    """Wait until so many answers are in the cache."""
    wait_for(f"{count} kept answers", lambda: figures(gateway)["answers"] == count)


def judged(gateway: Gateway, outcome: str, count: int = 1) -> None:
    """Wait until so many answers were judged so."""
    wait_for(
        f"{count} answers that are {outcome}", lambda: figures(gateway)["fills"].get(outcome, 0) >= count
    )
