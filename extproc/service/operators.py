"""Operators' commands about tenants: one tenant's use, what another quota would have done, and forgiving.

Owns the commands' messages. A credit alone changes something, and is on record.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from extproc.config.model import Quota
from extproc.core.accounts import Accounts, Price
from extproc.core.quota import Account, Amounts, ScopeLimits
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.observe.tenants import scopes_of, tenant_view
from extproc.observe.what_if import REPLAY_STEP, PastRequest, Recent, ReplayTerms, WhatIf, replay
from extproc.service.build import limits_of

#: How far a dry run looks back at the most.
MINUTES_MAX = 60
#: The most of anything that one credit gives back, and characters of why and who.
CREDIT_MAX = 1_000_000_000_000
WHY_MAX = 500
#: More than anybody can have used.
EVERYTHING = Amounts(CREDIT_MAX, CREDIT_MAX, CREDIT_MAX, CREDIT_MAX * 1e3, 1e9)

log = logging.getLogger(__name__)


def _nobody_notes(_event: str, **_facts: object) -> None:
    """There is no audit log."""


class Operators:
    """Answers for one scheduler."""

    def __init__(
        self,
        scheduler: Scheduler,
        recent: Recent,
        *,
        tenants: Callable[[], Mapping[str, Tenant]],
        clock: Callable[[], int],
        note: Callable[..., None] = _nobody_notes,
        audited: Callable[[], bool] = lambda: False,
    ) -> None:
        """`note` takes an event for the audit log; `audited` says whether there is one."""
        self.scheduler, self.recent = scheduler, recent
        self._note, self._audited = note, audited
        self._tenants, self._clock = tenants, clock

    def tenant(self, body: bytes) -> bytes:
        """`{"name": …}`; answers observe.tenants' view of it. ValueError when there is none."""
        name = msgspec.json.decode(body, type=_TenantOrder).name
        view = tenant_view(self.scheduler, self._named(name), now_ns=self._clock())
        return msgspec.json.encode({"name": name, **view})

    def credit(self, body: bytes) -> bytes:
        """`{"tenant", "scope", "amounts" | "everything", "why", "who"}`: forgive what was used.

        `scope` is tenant, model:NAME, key:ID or "" for all that the tenant has. Answers its use since.
        """
        order = msgspec.json.decode(body, type=_CreditOrder)
        tenant = self._named(order.tenant).name
        models, keys = scopes_of(self.scheduler.policy.accounts)
        own = self.scheduler.policy.accounts.tenants.get(tenant)
        scopes = [("tenant", own)] if own else []
        scopes += [*models.get(tenant, []), *keys.get(tenant, [])]
        chosen = tuple(each for each in scopes if order.scope in ("", each[0]))
        if not chosen:
            raise ValueError(f"tenant {tenant} has no such quota {order.scope!r}")
        amounts = EVERYTHING if order.everything else order.amounts.plain()
        account = Account(tenant, "", "", chosen)
        credit_id = f"credit-{uuid.uuid4().hex}"
        self.scheduler.quotas.credit(account, amounts, credit_id=credit_id, now_ns=self._clock())
        about = {
            "tenant": tenant,
            "scope": order.scope or "all",
            "amounts": "everything" if order.everything else msgspec.to_builtins(order.amounts),
            "why": order.why,
            "who": order.who,
        }
        self._note("tenant_credit", credit=credit_id, **about)
        log.info("credit %s: %s", credit_id, about)
        self.scheduler.counts["credits"] += 1
        view = tenant_view(self.scheduler, self._named(tenant), now_ns=self._clock())
        return msgspec.json.encode({"name": tenant, "credit": credit_id, "audited": self._audited(), **view})

    async def what_if(self, body: bytes) -> bytes:
        """`{"tenant", "scope", "quota", "minutes"}`; answers how many of the last requests it had refused.

        `scope` is tenant, model:NAME or key:ID. Decisions go on in between.
        """
        order = msgspec.json.decode(body, type=_WhatIfOrder)
        tenant = self._named(order.tenant).name
        proposed = limits_of(Quota.model_validate(order.quota))
        now_ns = self._clock()
        seen: list[PastRequest] = []
        for each in self.recent.of(tenant, since_ns=now_ns - round(order.minutes * 60e9)):
            seen.append(each)
            if len(seen) % REPLAY_STEP == 0:
                await asyncio.sleep(0)
        accounts = self.scheduler.policy.accounts
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
                verdict = WhatIf()
                for _ in replay(seen, tenant, table, self._world(), verdict, idle=idle):
                    await asyncio.sleep(0)
                answer[what][name] = verdict.plain()
        return msgspec.json.encode(answer)

    def _named(self, name: str) -> Tenant:
        found = self._tenants().get(name)
        if found is None:
            raise ValueError(f"no tenant {name[:63]!r} here")
        return found

    def _world(self) -> ReplayTerms:
        scheduler = self.scheduler

        def gpu_ms(pool: str, tokens_in: int, tokens_out: int) -> float:
            found = scheduler.fleet.pools.get(pool)
            return found.calibration.predict_gpu_ms(tokens_in, tokens_out) if found is not None else 0.0

        return ReplayTerms(
            gpu_ms=gpu_ms,
            price=lambda pool: scheduler.policy.prices.get(pool, Price()),
            running=lambda request_id: request_id in scheduler.ledger,
        )


def with_limits(accounts: Accounts, tenant: str, scope: str, limits: ScopeLimits) -> Accounts:
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


class _Credit(msgspec.Struct):
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    gpu_seconds: float = 0.0
    cost: float = 0.0

    def __post_init__(self) -> None:
        figures = (self.requests, self.input_tokens, self.output_tokens, self.gpu_seconds, self.cost)
        if not all(0 <= each <= CREDIT_MAX for each in figures):
            raise ValueError(f"a credit is at least 0 and at most {CREDIT_MAX:g} of each")

    def plain(self) -> Amounts:
        return Amounts(
            self.requests, self.input_tokens, self.output_tokens, self.gpu_seconds * 1e3, self.cost
        )


class _CreditOrder(msgspec.Struct):
    tenant: str
    why: str
    who: str = ""
    scope: str = ""
    amounts: _Credit = msgspec.field(default_factory=_Credit)
    everything: bool = False

    def __post_init__(self) -> None:
        if not self.why.strip() or max(len(self.why), len(self.who)) > WHY_MAX:
            raise ValueError(f"say why, in 1 to {WHY_MAX} characters; it is on record")
        if not self.everything and self.amounts == _Credit():
            raise ValueError("nothing to credit; give amounts, or everything")


class _WhatIfOrder(msgspec.Struct):
    tenant: str
    quota: dict[str, Any]
    scope: str = "tenant"
    minutes: float = msgspec.field(default=MINUTES_MAX)

    def __post_init__(self) -> None:
        if not 0.0 < self.minutes <= MINUTES_MAX:
            raise ValueError(f"minutes must be above 0 and at most {MINUTES_MAX}")
