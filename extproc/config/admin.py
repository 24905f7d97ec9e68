"""The admin port: where people look at the service and operators give orders, and who may.

Owns the rule that nothing is open beyond this machine: without a token only loopback is listened on.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from extproc.addresses import ip_of
from extproc.config.section import Section
from extproc.config.types import IpPort, Name, Sha256

#: Tokens, and names under which the port may be asked for.
TOKENS_MAX, HOSTS_MAX = 64, 64

HostName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:[0-9]{1,5})?$")]


class AdminToken(Section):
    """Who may ask."""

    name: Name
    """Whose it is, as the audit log has it."""
    sha256: Sha256
    """SHA-256 of the token in hex ('steersman tenant key new' makes a token and its hash)."""
    scope: Literal["read", "write"] = "read"
    """'read' looks; 'write' also drains, clears faults, credits tenants, and starts and stops experiments."""


class AdminTls(Section):
    """TLS of the admin port."""

    certificate: str = Field(min_length=1)
    """Its certificate chain, a PEM file."""
    key: str = Field(min_length=1)
    """Its key, a PEM file."""


class Admin(Section):
    """The page, the API behind it and /metrics, over HTTP."""

    listen: IpPort = "127.0.0.1:9090"
    """Where it listens, as ip:port; keep it on loopback, or list tokens."""
    auth: Literal["token", "write", "none"] | None = None
    """'token' asks for a token always; 'write' only for what changes something; 'none' never, so that anybody
    on this machine may do all. The last two go with loopback alone. When left out it is 'write' on loopback
    without tokens, else 'token'."""
    tokens: list[AdminToken] = Field(default=[], max_length=TOKENS_MAX)
    """Whose tokens open it."""
    tls: AdminTls | None = None
    """TLS; in the clear when left out: behind a proxy, or on loopback."""
    allowed_hosts: list[HostName] = Field(default=[], max_length=HOSTS_MAX)
    """Names by which browsers reach it, such as a proxy's public one; addresses and localhost need no entry.
    A request for another name is refused, since a stranger's page could have sent it (DNS rebinding)."""
    open_metrics: bool = False
    """Whether /metrics needs no token: for a scraper in a network of its own. Tenants' names are in it."""
    events_clients_max: int = Field(default=32, ge=1, le=10_000)
    """Pages that follow the live events at once; above it 503."""
    events_per_client_max: int = Field(default=8, ge=1, le=10_000)
    """How many of them one token may take, or without one a client address (an IPv6 /64 is one); above it
    429. Raise it where many look through one proxy."""
    requests_concurrent_max: int = Field(default=64, ge=1, le=10_000)
    """Requests answered at once, live events apart; above it 503."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ip_of(self.listen).is_loopback

    @property
    def guard(self) -> Literal["token", "write", "none"]:
        """`auth`, or what it is when left out."""
        return self.auth or ("write" if self.loopback and not self.tokens else "token")

    @model_validator(mode="after")
    def _closed(self) -> Self:
        if not self.loopback and self.guard != "token":
            raise ValueError(
                f"auth {self.guard!r} goes with loopback alone and {self.listen} is more; "
                "write auth: token and list tokens"
            )
        if self.guard == "token" and not self.tokens:
            raise ValueError(
                "no token is listed, so every request would be refused; list one under tokens "
                "('steersman tenant key new' makes it), or listen on 127.0.0.1"
            )
        names = [token.name for token in self.tokens]
        if again := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"token {again!r} is there twice; give each another name")
        return self
