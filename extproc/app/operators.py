"""Operators' questions about tenants: one tenant's use, and what another quota would have done.

Owns the two commands' messages. Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from extproc.app.build import limits_of
from extproc.config.model import Quota
from extproc.core.accounts import Accounts, Price
from extproc.core.desk import Desk
from extproc.core.quota import Limits
from extproc.core.tenant import Tenant
from extproc.observe.shadow import REPLAY_STEP, Recent, Seen, Verdict, World, replay
from extproc.observe.tenants import tenant_view

#: How far a dry run looks back at the most.
MINUTES_MAX = 60


class Operators:
    """Answers for one desk."""

    def __init__(
        self,
        desk: Desk,
        recent: Recent,
        *,
        tenants: Callable[[], Mapping[str, Tenant]],
        clock: Callable[[], int],
    ) -> None:
        self.desk, self.recent = desk, recent
        self._tenants, self._clock = tenants, clock

    def tenant(self, body: bytes) -> bytes:
        """`{"name": …}`; answers observe.tenants' view of it. ValueError when there is none."""
        name = msgspec.json.decode(body, type=_TenantOrder).name
        view = tenant_view(self.desk, self._named(name), now_ns=self._clock())
        return msgspec.json.encode({"name": name, **view})

    async def shadow(self, body: bytes) -> bytes:
        """`{"tenant", "scope", "quota", "minutes"}`; answers how many of the last requests it had refused.

        `scope` is tenant, model:NAME or key:ID. Decisions go on in between.
        """
        order = msgspec.json.decode(body, type=_ShadowOrder)
        tenant = self._named(order.tenant).name
        proposed = limits_of(Quota.model_validate(order.quota))
        now_ns = self._clock()
        seen: list[Seen] = []
        for each in self.recent.of(tenant, since_ns=now_ns - round(order.minutes * 60e9)):
            seen.append(each)
            if len(seen) % REPLAY_STEP == 0:
                await asyncio.sleep(0)
        accounts = self.desk.policy.accounts
        answer: dict[str, Any] = {
            "tenant": tenant,
            "scope": order.scope,
            "minutes": round((now_ns - seen[0].at_ns) / 60e9, 1) if seen else 0.0,
            "requests": len(seen),
            "refused_then": sum(each.refused for each in seen),
        }
        for what, table in (
            ("as_it_is", accounts),
            ("proposed", with_limits(accounts, tenant, order.scope, proposed)),
        ):
            answer[what] = {}
            for name, idle in (("never_idle", False), ("always_idle", True)):
                verdict = Verdict()
                for _ in replay(seen, tenant, table, self._world(), verdict, idle=idle):
                    await asyncio.sleep(0)
                answer[what][name] = verdict.plain()
        return msgspec.json.encode(answer)

    def _named(self, name: str) -> Tenant:
        found = self._tenants().get(name)
        if found is None:
            raise ValueError(f"no tenant {name[:63]!r} here")
        return found

    def _world(self) -> World:
        desk = self.desk

        def gpu_ms(pool: str, tokens_in: int, tokens_out: int) -> float:
            found = desk.fleet.pools.get(pool)
            return found.calibration.predict_gpu_ms(tokens_in, tokens_out) if found is not None else 0.0

        return World(
            gpu_ms=gpu_ms,
            price=lambda pool: desk.policy.prices.get(pool, Price()),
            running=lambda request_id: request_id in desk.ledger,
        )


def with_limits(accounts: Accounts, tenant: str, scope: str, limits: Limits) -> Accounts:
    """One tenant's accounts with the limits of one scope replaced. ValueError for what is no scope."""
    tenants = {name: each for name, each in accounts.tenants.items() if name == tenant}
    models = {name: each for name, each in accounts.models.items() if name[0] == tenant}
    keys = {name: each for name, each in accounts.keys.items() if name[0] == tenant}
    kind, _, name = scope.partition(":")
    match kind:
        case "tenant":
            tenants[tenant] = limits
        case "model":
            models[tenant, name] = limits
        case "key":
            keys[tenant, name] = limits
        case _:
            raise ValueError(f"{scope[:80]!r} is no scope; write tenant, model:NAME or key:ID")
    return Accounts(tenants=tenants, models=models, keys=keys)


class _TenantOrder(msgspec.Struct):
    name: str


class _ShadowOrder(msgspec.Struct):
    tenant: str
    quota: dict[str, Any]
    scope: str = "tenant"
    minutes: float = msgspec.field(default=MINUTES_MAX)

    def __post_init__(self) -> None:
        if not 0.0 < self.minutes <= MINUTES_MAX:
            raise ValueError(f"minutes must be above 0 and at most {MINUTES_MAX}")
