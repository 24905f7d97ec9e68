"""Whose request one site sends on to another: short-lived claims for one site, each taken once.

Owns the claims, their times and the memory of what was taken. The sender is trusted with its tenants' names,
because it shares a key; whoever has none can neither make claims nor use seen ones again. Times are unix
seconds by each side's own clock, so that clocks may differ by the leeway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from extproc.core.remote.signing import SiteKey, Untrusted, sign, verify

#: How long claims hold, where both clocks agree; and how far clocks may differ.
LIFE_S: Final = 30.0
LEEWAY_S: Final = 90.0
#: Names of claims that were taken, remembered until they hold no more: at 200 bytes each some 50 MB at worst.
TAKEN_MAX: Final = 262_144
#: A token is no longer: names are bounded (64 characters), so nothing of ours is.
TOKEN_BYTES_MAX: Final = 2_048
#: What a token is for: a tenant's request, or a site's own question.
REQUEST, QUESTION = "steersman-request", "steersman-question"


class SiteClaims(msgspec.Struct, frozen=True, omit_defaults=True):
    """From which site, for which, from when until when, called how; whose request, of which service class,
    how many gateways have sent it on, this one included, and where its client is."""

    iss: str
    aud: str
    iat: float
    exp: float
    jti: str
    tenant: str = ""
    service_class: str = ""
    hops: int = 1
    place: str = ""


class AskTaken(NamedTuple):
    """Whether another service here took a site's token before: of which site, its name, and for how many
    seconds it may hold yet."""

    site: str
    name: str
    life_s: float


_claims = msgspec.json.Decoder(SiteClaims)


def issue(
    own: str,
    to: str,
    key: SiteKey,
    *,
    name: str,
    now_s: float,
    kind: str = REQUEST,
    tenant: str = "",
    service_class: str = "",
    hops: int = 1,
    place: str = "",
) -> str:
    """A token of site `own` for site `to`; `name` must never be used twice."""
    claims = SiteClaims(
        iss=own,
        aud=to,
        iat=now_s,
        exp=now_s + LIFE_S,
        jti=name,
        tenant=tenant,
        service_class=service_class,
        hops=hops,
        place=place,
    )
    return sign(claims, key, kind=kind)


class TakenClaims:
    """The names of claims that were taken, until they hold no more. Owns the bound: full, it takes none."""

    __slots__ = ("_due", "_max", "_names")

    def __init__(self, most: int = TAKEN_MAX) -> None:
        self._max = most
        self._names: set[tuple[str, str]] = set()
        self._due: deque[tuple[float, tuple[str, str]]] = deque()

    def __len__(self) -> int:
        return len(self._names)

    def take(self, site: str, name: str, *, until_s: float, now_s: float) -> None:
        """Take a site's claims of that name, which hold until then. Raises Untrusted for a second time."""
        while self._due and self._due[0][0] <= now_s:
            self._names.discard(self._due.popleft()[1])
        known = (site, name)
        if known in self._names:
            raise Untrusted("it was used before")
        if len(self._names) >= self._max:
            raise Untrusted(f"{self._max} tokens were taken in their life, and no more are remembered")
        self._names.add(known)
        # Nearly in order; one that stands behind a later one is kept a little longer.
        self._due.append((until_s, known))


def accept(
    token: str,
    keys: Mapping[str, tuple[str, SiteKey]],
    taken: TakenClaims | None,
    *,
    own: str,
    now_s: float,
    kind: str = REQUEST,
    leeway_s: float = LEEWAY_S,
) -> SiteClaims:
    """The claims of a token for site `own`, once; without `taken` it is only looked at. Raises Untrusted."""
    owner, payload = verify(token, keys, kind=kind, bytes_max=TOKEN_BYTES_MAX)
    try:
        claims = _claims.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Untrusted("its claims cannot be read") from error
    if claims.iss != owner:
        raise Untrusted("it names another site than its key's")
    if claims.aud != own:
        raise Untrusted("it is meant for another site")
    if claims.hops < 1:
        raise Untrusted("its claims cannot be read")
    early_s, until_s = claims.iat - now_s, claims.exp + leeway_s
    if not claims.exp - claims.iat <= LIFE_S + 1.0:
        raise Untrusted("it holds for longer than tokens may")
    if not early_s <= leeway_s:
        raise Untrusted(f"it is of {early_s:.0f} s ahead of this clock; set both clocks (NTP)")
    if not now_s < until_s:
        ago_s = now_s - claims.exp
        raise Untrusted(f"it expired {ago_s:.0f} s ago by this clock; set both clocks (NTP)")
    if taken is not None:
        taken.take(owner, claims.jti, until_s=until_s, now_s=now_s)
    return claims
