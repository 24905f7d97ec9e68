"""The files of the decision port's TLS, as each transport wants them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Our certificate chain and key, and the authority of the callers' certificates, where they need one."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def for_grpc(self) -> Any:
        """grpc's server credentials. OSError where a file cannot be read."""
        authority = None if self.client_ca is None else self.client_ca.read_bytes()
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=authority,
            require_client_auth=authority is not None,
        )

    def context(self) -> ssl.SSLContext:
        """Python's context for servers of HTTP/2 alone. OSError (ssl.SSLError) where a file is not good."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.load_cert_chain(self.certificate, self.key)
        context.set_alpn_protocols(["h2"])
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
