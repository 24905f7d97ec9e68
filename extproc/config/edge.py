"""`gateway.trusted_proxy`, `client_address` and `cors`: who stands in front, and which web pages may ask."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from extproc.config.section import Section
from extproc.config.types import HeaderName, Network

_ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]{1,253}")
_HEADER = re.compile(r"\*|[A-Za-z0-9-]{1,128}")


def _origin(value: str) -> str:
    if value != "*" and not _ORIGIN.fullmatch(value):
        raise ValueError(
            f"{value!r} is no origin; write what browsers send, such as https://app.example (no path, "
            "lower-case), or '*' for every page"
        )
    return value


def _header(value: str) -> str:
    if not _HEADER.fullmatch(value):
        raise ValueError(f"{value!r} is no header's name; write its letters, digits and '-', or '*'")
    return value


class TrustedProxy(Section):
    """A proxy in front that has proven its clients' identity and names the tenant in a header."""

    networks: list[Network] = Field(min_length=1, max_length=64)
    """Where it connects from (10.0.0.0/24), seen as the connection's own address. From anywhere else the
    header is removed."""
    header: HeaderName = "x-forwarded-tenant"
    """The header; its value is a tenant's name."""


class ClientAddress(Section):
    """Proxies in front whose word on the client's address is taken, for limits and logs by address."""

    networks: list[Network] = Field(min_length=1, max_length=64)
    """Where they connect from (10.0.0.0/24), seen as the connection's own address."""
    source: Literal["x-forwarded-for", "proxy_protocol"] = "x-forwarded-for"
    """How they say it. With 'proxy_protocol' each connection begins with that protocol's header (version 1
    or 2), and connections from elsewhere than networks are closed."""
    hops: int = Field(default=1, ge=1, le=16)
    """Of x-forwarded-for: how many such proxies a request passes. The address that the first of them saw is
    the client's; with fewer addresses in the header the connection's own."""


class Cors(Section):
    """Web pages that may call the gateway from their visitors' browsers."""

    origins: list[Annotated[str, AfterValidator(_origin)]] = Field(min_length=1, max_length=64)
    """Their origins (https://app.example), or '*'. Envoy answers their preflights, without a key."""
    headers: list[Annotated[str, AfterValidator(_header)]] = Field(
        default=["authorization", "*"], min_length=1, max_length=64
    )
    """Request headers that they may send; '*' means all but authorization, which must be named."""
    max_age_s: int = Field(default=600, ge=0, le=86_400)
    """How long a browser may remember the answer to a preflight."""
