"""The process that decides: where it listens, and how it and Envoy prove to each other who they are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from extproc.addresses import port_of
from extproc.config.section import Section
from extproc.config.types import EnvoyFile, Listen

#: A token that is shorter could be guessed.
TOKEN_CHARS_MIN = 16


class ServiceTls(Section):
    """TLS of the service's ports (not of unix sockets); the files are read at the start."""

    certificate: str = Field(min_length=1)
    """The service's certificate chain, a PEM file."""
    key: str = Field(min_length=1)
    """Its key, a PEM file."""
    client_ca: str | None = Field(default=None, min_length=1)
    """The authority of Envoy's certificate, a PEM file; who has none of it is refused. Nobody is asked for
    one when left out."""


class ServiceClientTls(Section):
    """TLS from Envoy to the service. The files are Envoy's to read, so their paths are absolute."""

    ca: EnvoyFile
    """The authority of the service's certificate, a PEM file."""
    server_name: str = Field(min_length=1, max_length=253)
    """The name that must stand in the service's certificate (a SAN, DNS)."""
    certificate: EnvoyFile | None = None
    """Envoy's own certificate chain, a PEM file; needed where service.tls has client_ca."""
    key: EnvoyFile | None = None
    """Its key, a PEM file."""


class Service(Section):
    """The process that decides."""

    listen: list[Listen] = Field(default=["127.0.0.1:50051"], min_length=1)
    """Where it serves gRPC to Envoy: ip:port or unix:/path, several allowed. Orders are not taken here."""
    ads_listen: list[Listen] = Field(default=[])
    """Where it tells Envoy of pools and endpoints (ADS), with the same token and TLS: ip:port or unix:/path,
    several allowed. At listen when left out. With it nothing but decisions, records, events and health is
    served at listen."""
    transport: Literal["http2", "grpcio"] | None = None
    """What carries the calls of Envoy there. 'http2' is libnghttp2 on the service's own event loop, and takes
    about a third of the service's CPU off; 'grpcio' is gRPC's own. When left out it is http2, but grpcio with
    picker.enabled, and where the package ngh2 cannot be imported. For libnghttp2 takes no :authority with a /
    or a |, and Envoy says its cluster's name there, which Envoy Gateway and Istio write with them."""
    run_dir: str | None = Field(default=None, pattern=r"^/")
    """The folder of the operators' socket (mode 0600) and of the key of its tickets. When left out it is the
    folder of the first of listen where that is a unix socket, else a private one of the user:
    $XDG_RUNTIME_DIR/steersman, or /tmp/steersman-UID. There commands find it; elsewhere it is given with
    --address unix:RUN_DIR/127.0.0.1_50051.orders.sock."""
    token_file: str | None = Field(default=None, min_length=1)
    """A file with a token that Envoy shows with each call, of 16 characters or more; further lines are older
    tokens, which are taken as well. Several services that share it know each other's decisions."""
    token_env: str | None = Field(default=None, min_length=1, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable with that token. Either this or token_file; none of both asks for no token."""
    tls: ServiceTls | None = None
    """TLS with Envoy, where it is not in the same host or pod; in the clear when left out."""
    zone: str = Field(default="", max_length=63)
    """The zone it runs in; replicas of the same one are preferred."""
    drain_s: float = Field(default=10.0, ge=0.0, le=600.0)
    """How long open streams may take to end after SIGTERM."""
    drain_quiet_s: float = Field(default=1.0, ge=0.0, le=60.0)
    """After SIGTERM it ends when nobody has asked for so long: Envoy's health check must notice first."""

    def ads_at(self, services: list[str]) -> list[str]:
        """Where Envoy finds ADS of the services that it finds at `services`; none where it is at listen."""
        first = self.ads_listen[:1]
        if not first or first[0].startswith("unix:"):
            return first
        hosts = [where.rpartition(":")[0] for where in services if not where.startswith("unix:")]
        return [f"{host}:{port_of(first[0])}" for host in dict.fromkeys(hosts)] or first
