"""Who may ask what: tokens and scopes, the names the port goes by, and whose page makes a browser ask.

Owns each decision to refuse; knows no HTTP server. Tokens come in the Authorization header alone: a browser
sends none by itself, so no stranger's page can use one that it does not know.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from extproc.config.admin import Admin
from extproc.core.attempts import AttemptLimiter

READ, WRITE = "read", "write"
#: Wrong tokens of one address: a minute, at once, and addresses remembered.
FAILURES_PER_MINUTE, FAILURES_BURST, SOURCES_MAX = 10, 20, 10_000
#: A longer Authorization header is not looked at.
TOKEN_CHARS_MAX = 512
#: What a browser says of who made it ask, where no stranger did.
OURS = frozenset({"same-origin", "none"})


@dataclass(frozen=True, slots=True)
class Access:
    """What somebody may. `name` is the token's; "" for who has shown none."""

    name: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Denied:
    """A refusal: HTTP status, code, message, and seconds to wait where it is for a while."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None


class AccessGuard:
    """One configuration's rules. `apply` takes another one; failures stay counted."""

    def __init__(self, settings: Admin) -> None:
        self.settings = settings
        self._failures = AttemptLimiter(
            per_minute=FAILURES_PER_MINUTE, burst=FAILURES_BURST, sources_max=SOURCES_MAX
        )

    def apply(self, settings: Admin) -> None:
        """Other rules hold."""
        self.settings = settings

    def addressed(self, headers: Mapping[str, str], *, changing: bool) -> Denied | None:
        """Refuse what a stranger's page could have sent: another host's name, another origin.

        `changing`: it is an order. Navigation from elsewhere to the page itself is let pass by the caller.
        """
        host = headers.get("Host", "")
        if not host_allowed(host, self.settings.allowed_hosts):
            return Denied(
                421,
                "wrong_host",
                f"this port does not go by {host[:100]!r}; list the name under admin.allowed_hosts",
            )
        if headers.get("Sec-Fetch-Site", "none") not in OURS:
            return Denied(403, "cross_site", "asked by another site's page")
        origin = headers.get("Origin")
        if changing and origin is not None and not self._same(origin, host):
            return Denied(403, "cross_site", "ordered by another site's page")
        return None

    def admit(self, authorization: str, source: str, *, now_ns: int) -> Access | Denied:
        """What the bearer of a token may, or somebody without one."""
        if not authorization:
            return Access("", self.free)
        if wait_s := self._failures.blocked_s(source, now_ns=now_ns):
            return Denied(429, "too_many_failures", "too many wrong tokens from this address", wait_s)
        kind, _, token = authorization.partition(" ")
        found = self._token(token.strip()) if kind.lower() == "bearer" else None
        if found is None:
            self._failures.failed(source, now_ns=now_ns)
            return Denied(401, "wrong_token", "the token is not known here")
        return found

    def may(self, access: Access, scope: str) -> Denied | None:
        """None where it may."""
        if scope in access.scopes:
            return None
        if access.name:
            return Denied(403, "scope", f"token {access.name!r} may only {READ}; this needs {scope!r}")
        return Denied(401, "token_needed", f"this needs a token with scope {scope!r}")

    @property
    def free(self) -> frozenset[str]:
        """What needs no token."""
        match self.settings.guard:
            case "none":
                return frozenset({READ, WRITE})
            case "write":
                return frozenset({READ})
            case _:
                return frozenset()

    def _token(self, token: str) -> Access | None:
        if not token or len(token) > TOKEN_CHARS_MAX:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        found: Access | None = None
        # All of them, each in constant time: how long it takes tells nothing of which one it was near.
        for known in self.settings.tokens:
            if hmac.compare_digest(digest, known.sha256):
                scopes = frozenset({READ, WRITE} if known.scope == WRITE else {READ})
                found = Access(known.name, scopes | self.free)
        return found

    def _same(self, origin: str, host: str) -> bool:
        """Whether an origin is this port itself; behind a proxy the scheme may differ, the name may not."""
        try:
            theirs = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return theirs == host.lower() or theirs in self.settings.allowed_hosts


def host_allowed(host: str, allowed: Iterable[str]) -> bool:
    """An address, localhost, or a listed name (with its port, or with any where it is listed without).

    Rebinding needs a name that an attacker's server answers for: no address is one.
    """
    lowered = host.lower()
    try:
        parts = urlsplit(f"//{lowered}")
        name, _ = parts.hostname or "", parts.port
    except ValueError:
        # What stands for a port is none.
        return False
    if name == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return lowered in (listed := set(allowed)) or name in listed
    return True
