"""Asking a replica as Envoy does: TLS with its name checked, the engine's own key, headers, the path before.

One client for the service's looks, `doctor`, `init` and the node agents, so that they find what requests do.
Owns what a failed handshake is called. Knows nothing of the rest.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import StreamReader

#: The system's authorities where Envoy's images, Debian and Alpine have them.
SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_OTHER_NAME = "its certificate has another name; set upstream.tls.server_name to one that it has"
_OTHER_CA = "its certificate is signed by an authority that upstream.tls.ca does not hold"
_OTHER_VERSION = "it speaks no version of TLS that upstream.tls.min_version allows"
#: OpenSSL's reasons in the words of who has to mend it.
_REASONS = (
    ("certificate has expired", "its certificate has expired; renew it"),
    ("certificate is not yet valid", "its certificate is not valid yet; look at both clocks"),
    ("Hostname mismatch", _OTHER_NAME),
    ("IP address mismatch", _OTHER_NAME),
    ("self-signed certificate", _OTHER_CA),
    ("unable to get local issuer", _OTHER_CA),
    ("certificate signature failure", _OTHER_CA),
    ("CERTIFICATE_REQUIRED", "it wants a client certificate; set upstream.tls.cert and key"),
    ("UNKNOWN_CA", "it does not know who signed our client certificate; see upstream.tls.cert"),
    ("BAD_CERTIFICATE", "it does not take our client certificate; see upstream.tls.cert"),
    ("CERTIFICATE_EXPIRED", "our client certificate has expired; renew upstream.tls.cert"),
    ("HANDSHAKE_FAILURE", "no handshake: it wants a client certificate, or has no cipher of ours"),
    ("WRONG_VERSION_NUMBER", "it speaks no TLS; leave upstream.tls out, or name its TLS port"),
    ("RECORD_LAYER_FAILURE", "it speaks no TLS; leave upstream.tls out, or name its TLS port"),
    ("PROTOCOL_VERSION", _OTHER_VERSION),
    ("UNSUPPORTED_PROTOCOL", _OTHER_VERSION),
)


@dataclass(frozen=True, slots=True)
class ReplicaAccess:
    """How a pool's replicas are asked. `context` None: in the clear. The key is never in its repr."""

    context: ssl.SSLContext | None = None
    server_name: str = ""
    path_prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: It has a key of its own to show.
    keyed: bool = False
    #: It shows a client certificate.
    certified: bool = False
    #: HTTP/2 alone is spoken there: what is no HTTP/1.1 is an answer as well.
    http2_alone: bool = False

    def closed(self) -> str:
        """What it may mean that a connection is closed without an answer; empty where that says nothing.

        With TLS 1.3 a client learns only then that its certificate was missed.
        """
        if self.context is None or self.certified:
            return ""
        return "TLS: closed after the handshake; it may want a client certificate (upstream.tls.cert)"

    def asking(self, name: str = "") -> dict[str, Any]:
        """What aiohttp's client is given beside the URL; `name` is the replica's own."""
        name = self.server_name or name
        how: dict[str, Any] = {"headers": {**self.headers, **({"host": name} if name else {})}}
        if self.context is not None:
            how["ssl"] = self.context
            if name:
                how["server_hostname"] = name
        return how

    @property
    def scheme(self) -> str:
        """https with TLS."""
        return "http" if self.context is None else "https"

    def name(self, host: str) -> str:
        """What is asked for (SNI, Host) at a host: the pool's name, else its own."""
        return self.server_name or host


#: In the clear, without a key.
PLAIN = ReplicaAccess()


def bare_prefix(value: str) -> str:
    """What stands before every path, without a slash at its end. Raises ValueError."""
    bare = value.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", bare) or {".", ".."} & set(bare.split("/")):
        raise ValueError(f"{value!r} is not a path's beginning; write it like /openai")
    return bare


def before_key(header: str, scheme: str | None) -> str:
    """What stands before a key in its header, with the blank. `scheme` None: what is usual there."""
    if scheme is None:
        scheme = "Bearer" if header == "authorization" else ""
    return f"{scheme} " if scheme else ""


#: What tells one state of a file from another: inode, time of change, size.
FileSeen = tuple[int, int, int]


def file_seen(path: Path) -> FileSeen | None:
    """A file's state; None where it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def client_context(
    *, ca: str | None = None, cert: str | None = None, key: str | None = None, min_version: str = "1.2"
) -> ssl.SSLContext:
    """A client's TLS: verified, by these authorities or the system's. Raises OSError (SSLError is one)."""
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = _VERSIONS[min_version]
    context.set_alpn_protocols(["http/1.1"])
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


def tls_trouble(error: BaseException) -> str | None:
    """What is wrong with a handshake and how to mend it; None where it is no trouble of TLS."""
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        if isinstance(here, ssl.SSLError):
            said = f"{getattr(here, 'verify_message', '') or ''} {here}"
            known = next((text for mark, text in _REASONS if mark.lower() in said.lower()), None)
            return f"TLS: {known or here.reason or 'the handshake failed'}"
        here = here.__cause__ or getattr(here, "os_error", None) or here.__context__
    return None


async def read_bounded(content: StreamReader, bytes_max: int) -> bytes | None:
    """A whole answer, in however many pieces it comes; None where it is longer. Raises what reads raise."""
    parts, size = [], 0
    async for part in content.iter_any():
        size += len(part)
        if size > bytes_max:
            return None
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
