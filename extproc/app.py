"""Composition root: builds the service from a configuration, starts it, reloads it, drains it.

Owns the clock, the chance, the signals and the periodic work. Everything it puts together is built
to know nothing of the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec

from extproc.config.load import ConfigError, load
from extproc.config.model import Config
from extproc.core.desk import Desk, DeskLimits
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Outcome
from extproc.core.tenant import Directory, Tenant
from extproc.observe.tally import Tally
from extproc.wire.processor import Processor
from extproc.wire.server import Server

log = logging.getLogger(__name__)

#: What a reload may change of a pool: Envoy knows nothing of these.
RELOADABLE_OF_POOL = frozenset({"models", "strategy", "bytes_per_token", "output_tokens"})
#: How often expired reservations are looked for.
TICK_S = 0.5


def pool_specs(config: Config) -> list[PoolSpec]:
    """The configuration's pools as the core knows them."""
    return [
        PoolSpec(
            name=pool.name,
            models=tuple(pool.models),
            strategy=pool.strategy,
            endpoints=tuple((e.address, e.zone, e.max_concurrent) for e in pool.endpoints),
            bytes_per_token=pool.bytes_per_token,
            output_tokens=pool.output_tokens,
        )
        for pool in config.pools
    ]


def directory_of(config: Config) -> Directory:
    """The configuration's tenants by the hashes of their keys."""
    return Directory(
        (
            (
                Tenant(
                    name=tenant.name,
                    models=None if tenant.models is None else frozenset(tenant.models),
                    default_model=tenant.default_model,
                ),
                [key.sha256 for key in tenant.keys],
            )
            for tenant in config.tenants
        ),
        required=config.gateway.auth == "api_key",
    )


def restart_needed(old: Config, new: Config) -> list[str]:
    """Settings that differ and are Envoy's or the sockets', so that a reload cannot apply them."""
    changed = [
        f"gateway.{name}"
        for name in type(old.gateway).model_fields
        if name not in ("auth", "default_model") and getattr(old.gateway, name) != getattr(new.gateway, name)
    ]
    if new.gateway.failure_mode == "open" and _default_pool(old) != _default_pool(new):
        changed.append("gateway.default_model (its pool is where Envoy fails open to)")
    changed += [
        f"service.{name}"
        for name in type(old.service).model_fields
        if getattr(old.service, name) != getattr(new.service, name)
    ]
    if [pool.name for pool in old.pools] != [pool.name for pool in new.pools]:
        return [*changed, "pools (their names and order)"]
    changed += [
        f"pools[{i}].{name}"
        for i, (before, after) in enumerate(zip(old.pools, new.pools, strict=True))
        for name in type(before).model_fields
        if name not in RELOADABLE_OF_POOL and getattr(before, name) != getattr(after, name)
    ]
    return changed


def _default_pool(config: Config) -> str:
    pool = config.pool_of(config.default_model)
    assert pool is not None, config.default_model  # the configuration's own checks
    return pool.name


class App:
    """One running service."""

    def __init__(self, config: Config, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.config = config
        self.clock = clock
        instance = os.urandom(6).hex()
        self.desk = Desk(
            Fleet(pool_specs(config)),
            instance=instance,
            default_model=config.default_model,
            limits=_desk_limits(config),
            rng=Random(instance),
        )
        self.tally = Tally()
        self.processor = Processor(
            self.desk,
            directory_of(config),
            self.tally,
            decisions_concurrent_max=config.limits.decisions_concurrent_max,
            body_bytes_max=config.gateway.body_bytes_max,
            clock=clock,
        )
        self.started_ns = clock()
        self.server: Server | None = None
        self.addresses: list[str] = []

    async def start(self) -> list[str]:
        """Listen; returns the addresses. Raises wire.server.BindError."""
        self.server = Server(
            self.processor,
            settle=self.settle,
            status=self.status_json,
            message_bytes_max=self.config.gateway.body_bytes_max,
        )
        self.addresses = await self.server.start(self.config.service.listen)
        return self.addresses

    async def run(self, *, config_file: Path | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then drain; SIGHUP reloads. `start` comes first."""
        assert self.server is not None
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop.set)
        if config_file is not None:
            loop.add_signal_handler(signal.SIGHUP, self.reload, config_file)
        ticking = asyncio.create_task(self._tick())
        try:
            await stop.wait()
            log.info("draining for at most %.1f s", self.config.service.drain_s)
            await self.server.drain(self.config.service.drain_s)
        finally:
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking

    def settle(self, outcome: Outcome) -> None:
        """Take one access-log outcome into books and figures."""
        now_ns = self.clock()
        if self.desk.settle(outcome, now_ns=now_ns):
            self.tally.ended(outcome, now_ns=now_ns)

    def reload(self, path: Path) -> bool:
        """Read the configuration again; a bad or unappliable one changes nothing. True when applied."""
        try:
            new = load(path)
        except ConfigError as error:
            for problem in error.problems:
                log.error("reload refused, the last good configuration stays: %s", problem)
            self.desk.counts["reload.refused"] += 1
            return False
        if changed := restart_needed(self.config, new):
            log.error(
                "reload refused, the last good configuration stays: needs a restart: %s", ", ".join(changed)
            )
            self.desk.counts["reload.refused"] += 1
            return False
        self.config = new
        self.desk.fleet.apply(pool_specs(new))
        self.desk.default_model = new.default_model
        self.desk.limits = _desk_limits(new)
        self.desk.ledger.ttl_ns = self.desk.limits.reservation_ttl_ns
        self.desk.ledger.remembered_max = self.desk.limits.settled_remembered_max
        self.processor.directory = directory_of(new)
        self.processor.decisions_concurrent_max = new.limits.decisions_concurrent_max
        self.tally.forget_endpoints(self.desk.fleet)
        self.desk.counts["reload.applied"] += 1
        log.info("configuration reloaded from %s", path)
        return True

    def status(self) -> dict[str, object]:
        """Everything `steersman status` shows."""
        now_ns = self.clock()
        return {
            "instance": self.desk.instance,
            "uptime_s": round((now_ns - self.started_ns) / 1e9, 1),
            "open_exchanges": self.processor.open_exchanges,
            "in_flight": len(self.desk.ledger),
            "counts": dict(sorted(self.desk.counts.items())),
            "pools": {
                pool.name: {
                    "models": list(pool.models),
                    "strategy": pool.strategy,
                    "bytes_per_token": round(pool.calibration.bytes_per_token, 3),
                    "output_tokens_mean": round(pool.calibration.output_tokens, 1),
                }
                for pool in self.desk.fleet.pools.values()
            },
            **self.tally.snapshot(self.desk.fleet, now_ns=now_ns),
        }

    def status_json(self) -> bytes:
        """`status` as the status RPC sends it."""
        return msgspec.json.encode(self.status())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._expire()
            except Exception as error:  # noqa: BLE001 (without this task no reservation would expire again)
                self.processor.failed(error, "expiry")

    def _expire(self) -> None:
        for reservation in self.desk.expire(now_ns=self.clock()):
            log.warning(
                "reservation %s on %s expired: its end never came", reservation.id, reservation.address
            )


def _desk_limits(config: Config) -> DeskLimits:
    return DeskLimits(
        reservation_ttl_ns=config.limits.reservation_ttl_s * 1_000_000_000,
        reservations_max=config.limits.reservations_max,
        settled_remembered_max=config.limits.settled_remembered_max,
    )
