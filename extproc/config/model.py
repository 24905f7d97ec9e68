"""The shape of `steersman.yaml`: pydantic models with every default and bound.

Owns names, defaults, ranges and the checks across sections. Knows nothing of files (load.py), of
Envoy or of the running service. Every message says what is wrong and what to write instead,
because `steersman check` prints it as it stands.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from extproc.config.admin import Admin
from extproc.config.alerts import Alerts
from extproc.config.analytics import Analytics
from extproc.config.cache import CacheConfig
from extproc.config.decision_port import Service, ServiceClientTls, ServiceTls
from extproc.config.edge import ClientAddress, Cors, TrustedProxy
from extproc.config.experiments import EXPERIMENTS_MAX, ExperimentConfig
from extproc.config.families import FamilyConfig, ShiftDown
from extproc.config.metrics import MetricsConfig
from extproc.config.picker import PickerConfig
from extproc.config.pools import Discovery, DnsConfig, EndpointConfig, PoolConfig, PriceConfig
from extproc.config.recording import Record, Tuning
from extproc.config.routes import ROUTES_MAX, RouteConfig
from extproc.config.scaling import Scaling
from extproc.config.section import RELOADABLE, CircuitBreakers, OutlierDetection, Section
from extproc.config.sites import SiteConfig
from extproc.config.state import JournalConfig
from extproc.config.tenancy import Adjust, KeyConfig, Quota, ServiceClass, TenantConfig
from extproc.config.tracing import OpenTelemetry
from extproc.config.types import (
    EnvoyFile,
    IpPort,
    Listen,
    ModelName,
    Name,
    Network,
    RedisUrl,
    Sha256,
    StrategyName,
)

__all__ = [
    "Adjust",
    "Admin",
    "Alerts",
    "Analytics",
    "Audit",
    "CacheConfig",
    "CircuitBreakers",
    "ClientAddress",
    "Config",
    "Cors",
    "Discovery",
    "DnsConfig",
    "EndpointConfig",
    "FailedAttempts",
    "FamilyConfig",
    "GatewayConfig",
    "GatewayTls",
    "IdentitySection",
    "JournalConfig",
    "Jwt",
    "KeyConfig",
    "LimitsConfig",
    "MetricsConfig",
    "OpenTelemetry",
    "OutlierDetection",
    "PickerConfig",
    "PoolConfig",
    "PriceConfig",
    "Probes",
    "Quota",
    "Record",
    "Scaling",
    "Section",
    "Service",
    "ServiceClass",
    "ServiceClientTls",
    "ServiceTls",
    "Sharing",
    "ShiftDown",
    "StrategyName",
    "Telemetry",
    "TelemetryNode",
    "TelemetryTls",
    "TenantConfig",
    "TracingConfig",
    "TrustedProxy",
    "Tuning",
]


class TracingConfig(Section):
    """Envoy's OpenTelemetry tracer."""

    otlp_grpc: IpPort
    """The collector's OTLP gRPC address."""
    service_name: str = Field(default="steersman-gateway", min_length=1)
    """The name that spans carry."""
    sample_percent: float = Field(default=100.0, ge=0.0, le=100.0)
    """The share of requests that is traced."""


class Jwt(Section):
    """Tokens that Envoy verifies (RS, PS, ES and EdDSA algorithms, as the keys say)."""

    issuer: str = Field(min_length=1, max_length=1024)
    """What the token's `iss` must be."""
    audiences: list[Annotated[str, Field(min_length=1, max_length=1024)]] = []
    """One of these must be in the token's `aud`; not looked at when empty."""
    jwks_file: EnvoyFile | None = None
    """The issuer's keys, a JSON file that Envoy reads at its start; an absolute path."""
    jwks_inline: str | None = Field(default=None, min_length=2, max_length=262_144)
    """The issuer's keys themselves, as JSON. Either this or jwks_file."""
    claim: str = Field(default="sub", min_length=1, max_length=256)
    """The claim whose value is a tenant's jwt_subject; a text at the token's top level."""


class GatewayTls(Section):
    """TLS with clients. The files are Envoy's to read, so their paths are absolute."""

    certificate: EnvoyFile
    """The gateway's certificate chain, a PEM file."""
    key: EnvoyFile
    """Its key, a PEM file."""
    client_ca: EnvoyFile | None = None
    """The authority of client certificates, a PEM file; a certificate of another one is refused."""
    require_client_certificate: bool = False
    """Whether a client without a certificate is refused."""


class GatewayConfig(Section):
    """What clients connect to: Envoy."""

    listen: IpPort = "127.0.0.1:8080"
    """Where clients connect."""
    envoy_admin: IpPort = "127.0.0.1:9901"
    """Envoy's own admin port; keep it on loopback."""
    services: list[Listen] = []
    """Where Envoy finds this service; service.listen's first when left out."""
    ads_services: list[Listen] = []
    """Where Envoy finds service.ads_listen of each service. When left out: the hosts of services with the
    port of ads_listen's first; that itself where services names no host."""
    service_tls: ServiceClientTls | None = None
    """TLS from Envoy to the service, where that has service.tls; in the clear when left out."""
    auth: Annotated[Literal["api_key", "none"], RELOADABLE] = "api_key"
    """'api_key' asks every request for proof of its tenant: a key, or what jwt, tls and trusted_proxy add;
    'none' makes all of them tenant 'anonymous'."""
    jwt: Jwt | None = None
    """Tokens prove tenants too; none when left out."""
    tls: GatewayTls | None = None
    """TLS with clients, and with client_ca certificates prove tenants too; in the clear when left out."""
    trusted_proxy: TrustedProxy | None = None
    """A proxy whose word on the tenant is taken; none when left out."""
    client_address: ClientAddress | None = None
    """Proxies whose word on the client's address is taken; the connection's own address when left out."""
    cors: Cors | None = None
    """Web pages that may call the gateway; none when left out."""
    extra_routes: Annotated[list[Literal["/metrics", "/ping", "/invocations", "/vertex"]], RELOADABLE] = []
    """Further routes of TGI's that are served. '/metrics' shows a replica's own figures to every tenant that
    may use it, so they are all off unless named."""
    default_model: Annotated[ModelName | None, RELOADABLE] = None
    """The model of a request that names none; the first pool's first model when left out."""
    failure_mode: Literal["closed", "open"] = "closed"
    """When the service is away: 'closed' answers 503; 'open' sends requests, unauthenticated and
    unaccounted, to the default model's pool by Envoy's least-request balancer. Where that pool is reserved
    (`tenants`), or some tenant's `regions` could be left by it, requests get 503 all the same: by an API key
    Envoy cannot tell whose they are."""
    failure_open_outside_regions: bool = False
    """Whether 'open' holds although requests of tenants with `regions` may then be served outside of them."""
    body_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """The largest request body; above it 413."""
    upload_bytes_max: int = Field(default=25 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """The largest form (/v1/audio/transcriptions); above it 413. Its file passes through Envoy alone; the
    service sees the fields before it."""
    upload_kept_bytes_max: int = Field(default=4 * 1024 * 1024, ge=0, le=256 * 1024 * 1024)
    """Forms up to this are kept whole in Envoy's memory until they are answered, and are retried as other
    requests are. A larger one is sent to one replica, piece by piece as it comes."""
    upload_timeout_ms: int = Field(default=60_000, ge=100, le=3_600_000)
    """How long a request may take to arrive, its body included; above it 408."""
    body_bytes_unasked_max: int = Field(default=64 * 1024, ge=0, le=1024 * 1024)
    """Who it is is asked on the headers, before the body is read, in a call of its own; but not where the
    body says to be no larger than this and something that may prove a tenant is there."""
    connections_max: int = Field(default=20_000, ge=1, le=1_000_000)
    """Client connections at once; Envoy closes further ones unread."""
    connection_idle_timeout_s: int = Field(default=300, ge=1, le=86_400)
    """How long a connection may stay open without a request, a new one too. Longer than a balancer in front
    keeps its own, so that none is closed under a request."""
    retries: int = Field(default=2, ge=0, le=8)
    """How many further endpoints Envoy tries when one refuses, resets, or answers 401, 403, 429, 502, 503 or
    504."""
    connect_timeout_ms: int = Field(default=1_000, ge=10, le=60_000)
    """How long a connection to an endpoint may take."""
    first_byte_timeout_ms: int = Field(default=300_000, ge=100, le=3_600_000)
    """How long an endpoint may take to send response headers. A stream is then tried elsewhere. An answer
    that is not streamed comes whole: all its tries together may take this long, and a slow one is no reason
    to generate it again elsewhere."""
    stream_idle_timeout_ms: int = Field(default=300_000, ge=1_000, le=3_600_000)
    """How long a stream may be silent before it is cut; never sooner than first_byte_timeout_ms where that
    is the larger, since Envoy's two timers of a try do not work together."""
    decision_timeout_ms: int = Field(default=2_000, ge=50, le=60_000)
    """How long Envoy waits for a decision; above it 504."""
    heartbeat_s: int = Field(default=5, ge=1, le=300)
    """How often Envoy reports on a request that still runs; keeps its reservation alive."""
    debug_headers: bool = False
    """Tell clients the pool, the endpoint, the attempts and the reason in x-steersman-* response headers."""
    tracing: TracingConfig | None = None
    """Traces go here; none when left out."""


class FailedAttempts(Section):
    """How often one client address may fail to prove who it is before further failures of it are told to wait
    (429). Who proves who they are is served all the same: many share an address."""

    per_minute: int = Field(default=60, ge=1, le=60_000)
    """Wrong keys and tokens a minute; one without any is not counted."""
    burst: int = Field(default=60, ge=1, le=60_000)
    """How many of them at once."""
    sources_max: int = Field(default=10_000, ge=1, le=1_000_000)
    """Addresses remembered (an IPv6 /64 is one); the one that failed longest ago is forgotten first."""


class IdentitySection(Section):
    """What the service itself does about identity."""

    key_secret_file: str | None = Field(default=None, min_length=1)
    """A file with the secret of the keys' hmac_sha256, 16 bytes or more; blanks at its end do not count."""
    key_secret_env: str | None = Field(default=None, min_length=1, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable with that secret. Either this or key_secret_file."""
    failed_attempts: FailedAttempts = FailedAttempts()
    """How often an address may fail. Connections of a trusted proxy are not counted, since many share them,
    unless gateway.client_address tells which of them it is."""


class TelemetryNode(Section):
    """A node whose agent may push."""

    name: Name
    """Its name, as its agent says it; with mutual TLS also a SAN of its certificate."""
    token_sha256: Sha256 | None = None
    """SHA-256 of its token in hex ('steersman tenant key new' makes one); not needed with mutual TLS."""
    networks: list[Network] = []
    """Networks (10.0.0.0/24) in which its replicas' addresses must lie. Without any it registers and drains
    none, and its word that a replica is gone, hung or loading is only a suspicion until the service's own
    look says the same."""


class TelemetryTls(Section):
    """Mutual TLS with the agents."""

    certificate: str = Field(min_length=1)
    """The service's certificate, a PEM file."""
    key: str = Field(min_length=1)
    """Its key, a PEM file."""
    client_ca: str = Field(min_length=1)
    """The authority that signed the agents' certificates, a PEM file."""


class Telemetry(Section):
    """What node agents push to."""

    listen: list[Listen] = Field(default=["127.0.0.1:50052"], min_length=1)
    """Where agents connect, ip:port or unix:/path."""
    auth: Literal["token", "none"] = "token"
    """'token' asks each node for its token or, with tls, its certificate; 'none' believes any agent that
    can connect, for one machine."""
    nodes: list[TelemetryNode] = []
    """The nodes that may push."""
    tls: TelemetryTls | None = None
    """Mutual TLS; none when left out."""
    registrations_per_node_max: int = Field(default=64, ge=1, le=4_096)
    """Replicas that one node's agent may have registered at once."""
    registrations_per_pool_max: int = Field(default=1_024, ge=1, le=4_096)
    """Registered replicas of one pool."""
    forget_s: int = Field(default=60, ge=3, le=86_400)
    """A replica that agents registered is forgotten when it was not spoken of for this long."""


class Probes(Section):
    """The service's own looks at the health page (/health) of replicas of which no agent speaks."""

    enabled: bool = True
    """Whether it looks. Off, a dead replica is known by failed requests alone."""
    interval_s: float = Field(default=2.0, ge=0.25, le=300.0)
    """How often each is looked at; at once after a request on it failed."""
    timeout_s: float = Field(default=2.0, ge=0.05, le=60.0)
    """A replica that has not answered by then was silent; three looks in a row take it out. Time in which
    the service itself stalled is not counted (docs/health.md)."""
    per_second_max: int = Field(default=100, ge=1, le=10_000)
    """Looks a second over all replicas; with more of them each is looked at less often."""


class Sharing(Section):
    """What several services tell each other through Redis: telemetry, and work in flight."""

    redis: RedisUrl
    """Redis's address, such as redis://USER:PASSWORD@10.0.0.5:6379/0 (rediss:// with TLS),
    redis+sentinel://HOST:26379,HOST:26379/NAME/0 for the master that sentinels call NAME, or
    redis+cluster://HOST:6379,HOST:6379 for a cluster (rediss+… with TLS). In the query:
    sentinel_username, sentinel_password, ssl_ca_certs, ssl_certfile, ssl_keyfile."""
    prefix: str = Field(default="steersman", min_length=1, max_length=63, pattern=r"^[A-Za-z0-9:._-]+$")
    """What its keys and channels begin with; services that share have the same."""
    interval_ms: int = Field(default=100, ge=20, le=5_000)
    """How often a change of the work in flight is told at the most; each 25 ms while requests wait for a
    replica."""


class Audit(Section):
    """A log of who could not prove who they are, and of every change of quotas and keys."""

    file: str | None = Field(default=None, pattern=r"^/")
    """Where it is written, JSON lines of events without any key or prompt text; an absolute path, since
    commands write there too. None when left out."""
    bytes_max: int = Field(default=64 * 1024 * 1024, ge=64 * 1024, le=1024**4)
    """Above this the file is put aside as FILE.1 (up to four are kept) and begun anew."""


class LimitsConfig(Section):
    """Named bounds: what is held in memory, and for how long."""

    decisions_concurrent_max: int = Field(default=512, ge=1, le=100_000)
    """Decisions under way at once; above it 429."""
    reservation_ttl_s: int = Field(default=60, ge=5, le=86_400)
    """A reservation whose request is not heard of for this long expires; each heartbeat renews it."""
    reservations_max: int = Field(default=100_000, ge=1, le=10_000_000)
    """Requests in flight that the ledger follows; above it 429."""
    held_max: int = Field(default=10_000, ge=0, le=1_000_000)
    """Requests held at once, over all classes; above it the newest of the lowest class are shed."""
    ageing_ms: int = Field(default=2_000, ge=10, le=600_000)
    """After each such wait a held request is served as if one class better, so that nothing starves."""
    oldest_after_ms: int = Field(default=10_000, ge=100, le=600_000)
    """Once a tenant's oldest held request has waited this long, every fourth turn of its tenant is its,
    whatever the strategy's order (which serves first who can still meet its target)."""
    body_pieces_max: int = Field(default=32_768, ge=1_024, le=10_000_000)
    """Objects, lists and fields in a body; above it 413. Each costs far more to read than to send."""
    body_messages_max: int = Field(default=8_192, ge=16, le=1_000_000)
    """Messages of a chat, and parts of them, in all; above it 413."""
    refused_bytes_per_minute: int = Field(default=64 * 1024 * 1024, ge=64 * 1024, le=1024**4)
    """Bytes of bodies refused for what is in them (400, 413, 422), for each tenant; above it 429 on the
    headers, so that no more bodies of its are read. Without gateway.auth for each client address."""
    large_bytes_per_second: int = Field(default=32 * 1024 * 1024, ge=64 * 1024, le=1024**4)
    """Bytes of large bodies (above gateway.body_bytes_unasked_max, or without a length) that are taken in a
    second, for each tenant and service, and a second's worth at once. Above it they wait for up to a second
    and half of gateway.decision_timeout_ms; then 429. Without gateway.auth for each client address."""
    settled_remembered_max: int = Field(default=65_536, ge=1024, le=10_000_000)
    """Settled request ids kept, so that a record that comes twice counts once."""


class Config(Section):
    """The whole file."""

    version: Literal[1] = 1
    """The file format's version."""
    gateway: GatewayConfig = GatewayConfig()
    """What clients connect to: Envoy."""
    service: Service = Service()
    """The process that decides."""
    identity: IdentitySection = IdentitySection()
    """What the service itself does about identity."""
    audit: Audit = Audit()
    """The audit log."""
    record: Record = Record()
    """A log of requests to replay; none when left out."""
    tuning: Tuning = Tuning()
    """Tuning of a strategy while the service runs; off when left out."""
    metrics: MetricsConfig = MetricsConfig()
    """Bounds of Prometheus' metrics."""
    picker: PickerConfig = PickerConfig()
    """This service as the endpoint picker of other gateways; off when left out."""
    admin: Admin | None = None
    """The page, the API behind it and /metrics; no such port when left out ('steersman up' and 'demo' open
    one on loopback then)."""
    analytics: Analytics = Analytics()
    """Figures of the past, for reports."""
    alerts: Alerts = Alerts()
    """Rules of when somebody is told, and who; the built-in rules when left out."""
    otel: OpenTelemetry | None = None
    """Spans and GenAI metrics by OpenTelemetry's protocol; none when left out."""
    limits: LimitsConfig = LimitsConfig()
    """Bounds on what is held in memory, and for how long."""
    telemetry: Telemetry | None = None
    """What node agents push to; no telemetry when left out."""
    probes: Probes = Probes()
    """The service's own looks at replicas of which no agent speaks."""
    sharing: Sharing | None = None
    """Redis between several services; each knows its own work alone when left out."""
    state: JournalConfig = JournalConfig()
    """Quotas on the service's own disk, so that a restart forgets nothing."""
    site: SiteConfig | None = None
    """This site among others with a Steersman; there are none when left out."""
    classes: list[ServiceClass] = Field(default=[ServiceClass(name="standard")], min_length=1, max_length=8)
    """Service classes, the first served first."""
    pools: list[PoolConfig] = Field(min_length=1)
    """The replicas, grouped by the model they serve."""
    scaling: Scaling = Scaling()
    """How replicas become more and fewer, in pools that say so."""
    cache: CacheConfig | None = None
    """Answers that need no replica, for tenants or pools that say so; none are kept when left out."""
    routes: list[RouteConfig] = Field(default=[], max_length=ROUTES_MAX)
    """Paths that are served beside the gateway's own."""
    families: list[FamilyConfig] = Field(default=[], max_length=64)
    """Names that stand for several models, of which each request gets the one that it needs."""
    experiments: dict[Name, ExperimentConfig] = Field(default={}, max_length=EXPERIMENTS_MAX)
    """Strategies compared on live traffic, by the experiments' names."""
    tenants: list[TenantConfig] = []
    """Who may ask; needed unless gateway.auth is 'none'."""

    @property
    def default_model(self) -> str:
        """The model of a request that names none and whose tenant has no default."""
        return self.gateway.default_model or self.pools[0].models[0]

    @property
    def default_class(self) -> str:
        """The class of requests that have no tenant: 'standard' where there is one, else the first."""
        names = [each.name for each in self.classes]
        return "standard" if "standard" in names else names[0]

    @property
    def service_addresses(self) -> list[str]:
        """Where Envoy finds the service(s), as `ip:port` or `unix:/path`."""
        return self.gateway.services or self.service.listen[:1]

    @property
    def ads_addresses(self) -> list[str]:
        """Where Envoy is told of pools and endpoints, where that is apart from its service(s); else none."""
        return self.gateway.ads_services or self.service.ads_at(self.gateway.services)

    @property
    def transport(self) -> Literal["http2", "grpcio"]:
        """`service.transport`; what is left out is gRPC's own where gateways of others ask."""
        return self.service.transport or ("grpcio" if self.picker.enabled else "http2")

    def pool_of(self, model: str) -> PoolConfig | None:
        """The pool that serves a model name to everybody; else one that is reserved; or None."""
        serving = [pool for pool in self.pools if model in pool.models]
        return min(
            serving, key=lambda each: (each.tenants is not None, each.remote is not None), default=None
        )

    def pool_for(self, model: str, tenant: str) -> PoolConfig | None:
        """The pool in which a tenant's requests for a model are served, or None."""
        serving = [pool for pool in self.pools if model in pool.models]
        may = [pool for pool in serving if pool.tenants is None or tenant in pool.tenants]
        return min(may, key=lambda each: (each.tenants is None, each.remote is not None), default=None)
