"""How a pool's replicas are reached: TLS, HTTP/2, the path before theirs, headers, and their own key."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from extproc import addresses, upstream
from extproc.config.section import Section
from extproc.config.types import EnvoyFile

_FIELD_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_FIELD_VALUE = re.compile(r"[!-~]([ -~]{0,1022}[!-~])?")
#: What HTTP, Envoy or the gateway itself says; a key has a setting of its own.
_NOT_ADDED = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "cookie", "expect", "host",
     "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)  # fmt: skip
_OURS = ("x-steersman-", "x-envoy-", "x-gateway-", "x-forwarded-")


def _added_name(value: str) -> str:
    lowered = value.lower()
    if not _FIELD_NAME.fullmatch(lowered):
        raise ValueError(f"{value!r} is not a header's name; write a to z, 0 to 9 and '-'")
    if lowered in ("authorization", "x-api-key"):
        raise ValueError(f"{value!r} carries a key, which is a secret; name its file under upstream.key")
    if lowered in _NOT_ADDED or lowered.startswith(_OURS):
        raise ValueError(f"{value!r} is HTTP's or the gateway's own; choose another name")
    return lowered


def _added_value(value: str) -> str:
    if not _FIELD_VALUE.fullmatch(value):
        raise ValueError("is not 1 to 1,024 printable ASCII characters without blanks around them")
    return value


def _host(value: str) -> str:
    lowered = value.lower().rstrip(".")
    if not addresses.is_host_name(lowered):
        raise ValueError(
            f"{value!r} is not a host name; write the name in the certificate, like llm.internal"
        )
    return lowered


HostName = Annotated[str, AfterValidator(_host)]
TlsVersion = Literal["1.2", "1.3"]


class UpstreamTls(Section):
    """TLS to the replicas. Certificates are always verified. Envoy, the service, `doctor` read the files."""

    ca: EnvoyFile | None = None
    """The authority of the replicas' certificates, a PEM file; the system's when left out
    (/etc/ssl/certs/ca-certificates.crt)."""
    server_name: HostName | None = None
    """The name that must stand in each replica's certificate (a SAN, DNS), and is asked for (SNI, Host). The
    host name by which an endpoint is listed or found in DNS when left out; needed where any is an ip:port."""
    cert: EnvoyFile | None = None
    """The certificate chain that replicas are shown, a PEM file; none when left out."""
    key: EnvoyFile | None = None
    """Its key, a PEM file."""
    min_version: TlsVersion = "1.2"
    """The oldest version of TLS that is spoken."""


class UpstreamKey(Section):
    """The engine's own key. It takes the place of the client's, which never goes on."""

    file: str | None = Field(default=None, min_length=1)
    """A file that holds it. With `steersman up` and mode `ads` it is read again when it changes."""
    env: str | None = Field(default=None, min_length=1, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds it. Either this or file."""
    header: Literal["authorization", "x-api-key"] = "authorization"
    """The header that carries it."""
    scheme: str | None = Field(default=None, max_length=32, pattern=r"^[A-Za-z0-9_-]*$")
    """What stands before it there; 'Bearer' in authorization and nothing in x-api-key when left out."""

    @property
    def before(self) -> str:
        """What stands before the key in its header, with the blank."""
        return upstream.before_key(self.header, self.scheme)


class UpstreamHeaders(Section):
    """Headers on the way to the replicas."""

    add: dict[Annotated[str, AfterValidator(_added_name)], Annotated[str, AfterValidator(_added_value)]] = (
        Field(default={}, max_length=32)
    )
    """Set on each request, in place of a client's of that name. Not for secrets: these are shown."""


class Upstream(Section):
    """How the replicas are reached. The same for requests, the service's looks and `doctor`."""

    tls: UpstreamTls | None = None
    """TLS; in the clear when left out."""
    http2: bool | Literal["auto"] = False
    """HTTP/2: true has it spoken at once (h2c in the clear), 'auto' where the replica offers it in TLS."""
    path_prefix: Annotated[str, AfterValidator(upstream.bare_prefix)] | None = None
    """What stands before every path there: /openai asks /openai/v1/chat/completions."""
    headers: UpstreamHeaders = UpstreamHeaders()
    """Headers to add."""
    key: UpstreamKey | None = None
    """The engine's own key (vLLM's --api-key); the engine is given none when left out."""

    def asked_for(self, name: str = "") -> str:
        """The name (SNI, Host) by which a replica is asked for: the pool's, else its own; empty for none."""
        tls = self.tls
        return tls.server_name if tls is not None and tls.server_name is not None else name
