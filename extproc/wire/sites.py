"""The door between sites: whose request another one sends on, what is told to it, and what is signed for it.

Owns what a request of another site may be here: its tenant by name, its class where there is such a one. Who
is trusted with what stands in the file (`site.peers`); the keys are read again while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final, Protocol

from extproc.core.errors import Error
from extproc.core.outcome import LocalAnswer, Reject, Reservation
from extproc.core.remote.digest import digest, told
from extproc.core.remote.identity import (
    LEEWAY_S,
    QUESTION,
    REQUEST,
    AskTaken,
    SiteClaims,
    TakenClaims,
    accept,
    issue,
)
from extproc.core.remote.signing import SiteKey, Untrusted
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Directory, Identity, Tenant

#: What a digest comes as.
CONTENT_TYPE: Final = "application/jose"


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """This site's name, whom it takes requests of (and as which tenant, those of a name that is unknown), and
    the keys: by id with whose they are, and by site that which signs."""

    own: str
    forwards: Mapping[str, str | None] = field(default_factory=dict)
    known: Mapping[str, tuple[str, SiteKey]] = field(default_factory=dict, repr=False)
    signing: Mapping[str, SiteKey] = field(default_factory=dict, repr=False)
    leeway_s: float = LEEWAY_S


class SharedMemory(Protocol):
    """Names of tokens that several services have taken."""

    async def first(self, site: str, name: str, *, life_s: float) -> bool:
        """Whether nobody took a site's token of that name before; true where it cannot be known."""


class SiteDoor:
    """One service's. `wall` is unix time in seconds, `clock` the scheduler's."""

    def __init__(
        self, scheduler: Scheduler, policy: SitePolicy, *, wall: Callable[[], float], clock: Callable[[], int]
    ) -> None:
        self.policy = policy
        self.taken = TakenClaims()
        #: What other services here took; None where none shares with this one.
        self.shared: SharedMemory | None = None
        self._scheduler, self._wall, self._clock = scheduler, wall, clock
        self._numbers = count(1)

    @property
    def accepts(self) -> bool:
        """Whether any site may send requests on to this one."""
        return bool(self.policy.forwards)

    def identify(self, token: str, directory: Directory, *, alone: bool = False) -> Identity | Reject:
        """Whose request it is by another site's word. `alone`: it is asked about a body that is yet to come,
        whose request is asked about once more."""
        try:
            claims = self._accept(token, REQUEST, alone=alone)
        except Untrusted as error:
            self._scheduler.counts["site.refused"] += 1
            return Error.SITE_NOT_TRUSTED.reject(why=str(error))
        tenant = self._tenant(claims, directory)
        if tenant is None:
            self._scheduler.counts["site.refused"] += 1
            why = f"tenant {claims.tenant!r} is not known here; list it, or set site.peers[].tenant"
            return Error.SITE_NOT_TRUSTED.reject(why=why)
        if any(each.name == claims.service_class for each in self._scheduler.policy.classes):
            tenant = replace(tenant, service_class=claims.service_class)
        if not alone:
            self._scheduler.counts["site.forwarded"] += 1
        taken = None
        if self.shared is not None and not alone:
            life_s = claims.exp + self.policy.leeway_s - self._wall()
            taken = AskTaken(claims.iss, claims.jti, life_s)
        return Identity(tenant, ("site",), None, claims.iss, claims.hops, claims.place, taken)

    async def first(self, asked: AskTaken) -> Reject | None:
        """Whether no other service took that token before; None where none did, as far as is known."""
        shared = self.shared
        if shared is None or await shared.first(asked.site, asked.name, life_s=asked.life_s):
            return None
        self._scheduler.counts["site.refused"] += 1
        return Error.SITE_NOT_TRUSTED.reject(why="it was used before, at another service")

    def answer(self, token: str) -> LocalAnswer | Reject:
        """What this site offers, to another that asks in `token`."""
        try:
            claims = self._accept(token, QUESTION)
        except Untrusted as error:
            self._scheduler.counts["site.refused"] += 1
            return Error.SITE_NOT_TRUSTED.reject(why=str(error))
        scheduler = self._scheduler
        pools = told(
            scheduler.fleet,
            scheduler.dispatcher.queue,
            scheduler.policy.price,
            but=scheduler.sites.links.by_pool,
            now_ns=self._clock(),
        )
        key = self.policy.signing[claims.iss]
        text = digest(pools, key, own=self.policy.own, to=claims.iss, nonce=claims.jti, now_s=self._wall())
        return LocalAnswer(status=200, body=text.encode(), content_type=CONTENT_TYPE)

    def question(self, to: str) -> tuple[str, str]:
        """A signed question to another site, and its name, which the answer must have."""
        name = f"{self._scheduler.instance}-q{next(self._numbers)}"
        key = self.policy.signing[to]
        token = issue(self.policy.own, to, key, name=name, now_s=self._wall(), kind=QUESTION, hops=1)
        return token, name

    def token(self, reservation: Reservation) -> str:
        """What goes along with a request that is sent on to another site; "" for any other."""
        pool = self._scheduler.fleet.pools.get(reservation.pool)
        if pool is None or not pool.site or (key := self.policy.signing.get(pool.site)) is None:
            return ""
        return issue(
            self.policy.own,
            pool.site,
            key,
            name=reservation.id,
            now_s=self._wall(),
            tenant=reservation.tenant,
            service_class=reservation.service_class,
            hops=reservation.hops + 1,
            place=reservation.place,
        )

    def _accept(self, token: str, kind: str, *, alone: bool = False) -> SiteClaims:
        policy = self.policy
        claims = accept(
            token,
            policy.known,
            None if alone else self.taken,
            own=policy.own,
            now_s=self._wall(),
            kind=kind,
            leeway_s=policy.leeway_s,
        )
        if claims.iss not in policy.forwards:
            raise Untrusted("that site may not send requests on; set site.peers[].forwards for it")
        return claims

    def _tenant(self, claims: SiteClaims, directory: Directory) -> Tenant | None:
        if not directory.required:
            return directory.anonymous
        found = directory.tenants.get(claims.tenant)
        if found is None:
            otherwise = self.policy.forwards[claims.iss]
            found = None if otherwise is None else directory.tenants.get(otherwise)
        return found
