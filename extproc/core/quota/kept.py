"""What of the books outlives the process: changes as plain values, and the books made from them again.

Owns what must be kept: each scope's TATs, each reservation that has not ended, the ids that have. Every value
is absolute, never an increment: what is written twice changes nothing, and what was lost makes the books as
old as the last that was not. Knows no file and no clock; times are those of the books.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from extproc.core.quota.values import KINDS, Account, Bucket, ScopeLimits

#: Ids whose change waits to be written; above it (the disk is full) the oldest are given up, and counted.
TOUCHED_MAX = 200_000

#: What a reservation that was written is doing: its request runs, waits for a place, or was not heard of.
RUNS, WAITS, EXPIRED = "r", "w", "x"


class KeptAccount(NamedTuple):
    """An account with its limits: (scope, [(kind, limit, burst_ns, extra)], concurrent, concurrent_lent)."""

    tenant: str
    key: str
    model: str
    scopes: list[tuple[str, list[tuple[int, int, int, int]], int | None, int | None]]


class KeptHeld(NamedTuple):
    """A reservation; `account` is its place in the batch's list."""

    id: str
    account: int
    costs: list[int]
    borrowed: int
    doing: str


class KeptScope(NamedTuple):
    """A scope's TATs by kind, those that are not 0; none at all where it was forgotten."""

    tenant: str
    name: str
    tats: dict[int, int]
    extra: dict[int, int]


class JournalBatch(NamedTuple):
    """What has changed up to one moment. `gone` were cancelled: they are as if they had never been."""

    accounts: list[KeptAccount]
    held: list[KeptHeld]
    ended: list[str]
    gone: list[str]
    scopes: list[KeptScope]
    #: What quotas that follow their history have seen, by tenant (`adjust`).
    histories: dict[str, list[float]]

    def __bool__(self) -> bool:
        return any(self)


@dataclass(slots=True)
class Touched:
    """Ids and scopes that are not written as they are now."""

    ids: dict[str, None] = field(default_factory=dict)
    scopes: dict[tuple[str, str], None] = field(default_factory=dict)
    given_up: int = 0

    def add(self, reservation_id: str, account: Account) -> None:
        """Something about a reservation has changed, and so its scopes."""
        self.ids[reservation_id] = None
        for name in account.names:
            self.scopes[name] = None

    def again(self, ids: Sequence[str], scopes: Sequence[tuple[str, str]]) -> None:
        """They could not be written."""
        self.ids = dict.fromkeys(ids) | self.ids
        self.scopes = dict.fromkeys(scopes) | self.scopes
        over = len(self.ids) - TOUCHED_MAX
        if over > 0:
            for each in list(islice(self.ids, over)):
                del self.ids[each]
            self.given_up += over


@dataclass(slots=True)
class JournalState:
    """What all batches so far come to."""

    scopes: dict[tuple[str, str], KeptScope] = field(default_factory=dict)
    held: dict[str, tuple[KeptAccount, KeptHeld]] = field(default_factory=dict)
    #: Oldest first.
    ended: dict[str, None] = field(default_factory=dict)
    histories: dict[str, list[float]] = field(default_factory=dict)

    def fold(self, batch: JournalBatch) -> None:
        """The next batch."""
        for each in batch.held:
            self.held[each.id] = (batch.accounts[each.account], each)
        for ended in batch.ended:
            self.held.pop(ended, None)
            self.ended[ended] = None
        for gone in batch.gone:
            self.held.pop(gone, None)
        for scope in batch.scopes:
            if scope.tats or scope.extra:
                self.scopes[scope.tenant, scope.name] = scope
            else:
                self.scopes.pop((scope.tenant, scope.name), None)
        self.histories.update(batch.histories)

    def trim(self, *, now_ns: int, ended_max: int) -> None:
        """Forget what can no longer change a decision: empty buckets, and the oldest of the ended."""
        self.scopes = {
            name: scope
            for name, scope in self.scopes.items()
            if max((*scope.tats.values(), *scope.extra.values())) > now_ns
        }
        for each in list(islice(self.ended, max(0, len(self.ended) - ended_max))):
            del self.ended[each]

    def batches(self, most: int) -> Iterator[JournalBatch]:
        """The same in batches of at most so many of anything."""
        held, ended = iter(self.held.values()), iter(self.ended)
        scopes = iter(self.scopes.values())
        histories = self.histories
        while True:
            accounts = _Accounts()
            batch = JournalBatch(
                accounts.payload,
                [each._replace(account=accounts.of(account)) for account, each in islice(held, most)],
                list(islice(ended, most)),
                [],
                list(islice(scopes, most)),
                histories,
            )
            if not batch:
                return
            histories = {}
            yield batch


class _Accounts:
    """The accounts that a batch speaks of, each once."""

    def __init__(self) -> None:
        self.payload: list[KeptAccount] = []
        self._known: dict[int, int] = {}

    def of(self, account: KeptAccount) -> int:
        found = self._known.get(id(account))
        if found is None:
            found = self._known[id(account)] = len(self.payload)
            self.payload.append(account)
        return found


def account_words(account: Account) -> KeptAccount:
    """An account as it is written."""
    return KeptAccount(
        account.tenant,
        account.key,
        account.model,
        [
            (
                name,
                [(each.kind, each.limit, each.burst_ns, each.extra) for each in limits.buckets],
                limits.concurrent,
                limits.concurrent_lent,
            )
            for name, limits in account.scopes
        ],
    )


def account_of(payload: KeptAccount) -> Account:
    """An account as it was written. Raises ValueError for what no account is."""
    return Account(
        payload.tenant,
        payload.key,
        payload.model,
        tuple(
            (name, ScopeLimits(tuple(_bucket(*each) for each in buckets), concurrent, lent))
            for name, buckets, concurrent, lent in payload.scopes
        ),
    )


def _bucket(kind: int, limit: int, burst_ns: int, extra: int) -> Bucket:
    if not 0 <= kind < len(KINDS) or limit < 1 or extra < 0:
        raise ValueError(f"no bucket: {kind} {limit} {extra}")
    return Bucket(
        kind=kind,
        unit=KINDS[kind].unit,
        limit=limit,
        window_ns=KINDS[kind].window_ns,
        burst_ns=burst_ns,
        extra=extra,
    )


def tats_words(tats: Sequence[int] | None) -> dict[int, int]:
    """TATs by kind, those that are not 0."""
    return {kind: tat for kind, tat in enumerate(tats or ()) if tat}


def tats_of(payload: Mapping[int, int]) -> list[int]:
    """TATs as they were written."""
    tats = [0] * len(KINDS)
    for kind, tat in payload.items():
        if 0 <= kind < len(tats):
            tats[kind] = tat
    return tats
