"""Which limits a request is counted against, and what it is reckoned at.

Owns the accounts (tenant, model and key scopes) and the amounts: what is reserved at the decision, what
is charged at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from extproc.core.cachekeys.values import CacheCharge, CachedAnswer
from extproc.core.decide import RoutingRequest
from extproc.core.fleet import Pool
from extproc.core.outcome import End, Outcome, Reservation
from extproc.core.quota import NOTHING, Account, Amounts, ScopeLimits

#: Accounts kept ready; above it the table is begun anew (they are rebuilt in microseconds).
ACCOUNTS_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Currency for a million tokens."""

    input_per_million: float = 0.0
    output_per_million: float = 0.0

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost."""
        return (input_tokens * self.input_per_million + output_tokens * self.output_per_million) / 1e6


@dataclass(slots=True)
class Accounts:
    """Limits by tenant, by (tenant, model) and by (tenant, key)."""

    tenants: Mapping[str, ScopeLimits] = field(default_factory=dict)
    models: Mapping[tuple[str, str], ScopeLimits] = field(default_factory=dict)
    keys: Mapping[tuple[str, str], ScopeLimits] = field(default_factory=dict)
    _built: dict[tuple[str, str, str], Account] = field(default_factory=dict)

    def of(self, tenant: str, key: str, model: str) -> Account:
        """The account of a request; without scopes where nothing is limited."""
        found = self._built.get((tenant, key, model))
        if found is None:
            if len(self._built) >= ACCOUNTS_MAX:
                self._built.clear()
            found = self._built[tenant, key, model] = self._build(tenant, key, model)
        return found

    def _build(self, tenant: str, key: str, model: str) -> Account:
        scopes = (
            ("tenant", self.tenants.get(tenant)),
            (f"model:{model}", self.models.get((tenant, model))),
            (f"key:{key}", self.keys.get((tenant, key))),
        )
        return Account(tenant, key, model, tuple((name, limits) for name, limits in scopes if limits))


def borrows(account: Account) -> bool:
    """Whether idle capacity could lift any of its limits."""
    return any(
        any(bucket.extra for bucket in limits.buckets) or limits.concurrent_lent != limits.concurrent
        for _, limits in account.scopes
    )


def reserved(routing: RoutingRequest, pool: Pool, price: Price) -> Amounts:
    """What a case is predicted to use."""
    tokens_in, tokens_out = routing.input_tokens, routing.output_tokens
    return Amounts(
        requests=1,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        gpu_ms=pool.calibration.predict_gpu_ms(tokens_in, tokens_out),
        cost=price.of(tokens_in, tokens_out),
    )


def spared(answer: CachedAnswer, price: Price) -> Amounts:
    """What a request is charged that the cache answers, by its tenant's setting; no replica's time."""
    if answer.charge is CacheCharge.NOTHING:
        return NOTHING
    if answer.charge is CacheCharge.REQUEST:
        return Amounts(1, 0, 0, 0.0, 0.0)
    tokens_in, tokens_out = answer.usage.input_tokens, answer.usage.output_tokens
    return Amounts(1, tokens_in, tokens_out, 0.0, price.of(tokens_in, tokens_out))


def used(outcome: Outcome, pool: Pool | None, price: Price, *, gpu_ms: float | None) -> Amounts:
    """What a request has used, by its record.

    What the engine counted where it counted; of an answer that ended well without counts what was
    reserved. A client that left pays its prompt and what was produced until then. A refusal or a fault
    of the engine costs the request alone, unless tokens had been produced.
    """
    reservation = outcome.reservation
    tokens_out = _output(outcome, reservation)
    produced = tokens_out > 0 or outcome.end in (End.OK, End.CLIENT_GONE)
    tokens_in = 0
    if produced and reservation.permits:
        tokens_in = outcome.prompt_tokens if outcome.prompt_tokens is not None else reservation.input_tokens
    if gpu_ms is None:
        gpu_ms = pool.calibration.predict_gpu_ms(tokens_in, tokens_out) if pool is not None else 0.0
    return Amounts(
        requests=1,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        gpu_ms=gpu_ms if produced else 0.0,
        cost=price.of(tokens_in, tokens_out),
    )


def _output(outcome: Outcome, reservation: Reservation) -> int:
    if outcome.output_tokens is not None:
        return outcome.output_tokens
    if outcome.end is End.OK:
        return reservation.output_tokens
    return 0
