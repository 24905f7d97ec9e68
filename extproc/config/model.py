"""The shape of `steersman.yaml`: pydantic models with every default and bound.

Owns names, defaults, ranges and the checks across sections. Knows nothing of files (load.py), of
Envoy or of the running service. Every message says what is wrong and what to write instead,
because `steersman check` prints it as it stands.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from extproc.config.types import IpPort, Listen, ModelName, Name, Network, RedisUrl, Sha256

StrategyName = Literal["round_robin", "random", "least_request", "power_of_two", "least_work"]


class Section(BaseModel):
    """A section of the file: unknown keys are mistakes, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Endpoint(Section):
    """One model-server replica."""

    address: IpPort
    """Where it listens, as ip:port."""
    zone: str = ""
    """Its availability zone; empty when there is one only."""
    region: str = Field(default="", max_length=63)
    """Its region; tenants with `regions` are served there alone."""
    max_concurrent: int = Field(default=128, ge=1, le=65_536)
    """Requests it takes at once (TGI's max_concurrent_requests); above it TGI refuses inside a 200."""


class CircuitBreakers(Section):
    """Envoy's limits for one upstream cluster."""

    max_connections: int = Field(default=4096, ge=1, le=1_000_000)
    """Connections open at once."""
    max_pending_requests: int = Field(default=1024, ge=1, le=1_000_000)
    """Requests that wait for a connection."""
    max_requests: int = Field(default=4096, ge=1, le=1_000_000)
    """Requests in flight at once."""
    max_retries: int = Field(default=64, ge=0, le=1_000_000)
    """Retries in flight at once."""


class OutlierDetection(Section):
    """When Envoy itself sets an endpoint aside."""

    consecutive_5xx: int = Field(default=5, ge=1, le=1000)
    """Server errors in a row before an endpoint is ejected."""
    base_ejection_ms: int = Field(default=5_000, ge=100, le=3_600_000)
    """How long the first ejection lasts; later ones grow by the same."""
    max_ejection_percent: int = Field(default=50, ge=0, le=100)
    """The share of a pool that may be ejected at once."""


class DnsName(Section):
    """A name whose addresses are replicas."""

    name: str = Field(min_length=1, max_length=253)
    """The host name; every A and AAAA record of it is a replica."""
    port: int = Field(ge=1, le=65535)
    """The port of each."""
    interval_s: float = Field(default=5.0, ge=1.0, le=3600.0)
    """How often it is resolved."""


class Discovery(Section):
    """Where replicas come from besides the list."""

    dns: list[DnsName] = Field(default=[], max_length=64)
    """Names to resolve."""
    file: str | None = None
    """A YAML or JSON file with `endpoints:`, watched; a bad one changes nothing."""
    agents: bool = True
    """Whether node agents may register replicas for this pool."""


class Pool(Section):
    """Endpoints that serve the same model."""

    name: Name
    """Its name in reports, headers and Envoy's clusters."""
    models: list[ModelName] = Field(min_length=1)
    """The model names that clients ask for; the first is the one told to engines' native routes."""
    engine: Literal["tgi", "vllm", "sglang", "llamacpp"] = "tgi"
    """What the replicas run."""
    strategy: StrategyName = "least_work"
    """How a replica is chosen."""
    endpoints: list[Endpoint] = []
    """The replicas that are known beforehand."""
    discovery: Discovery = Discovery()
    """Where further replicas come from."""
    zone_penalty_tokens: int = Field(default=2_000, ge=0, le=10_000_000)
    """A replica in another zone than the service's counts as if this much more work waited on it: the
    same zone is preferred while it is not worse by that."""
    bytes_per_token: float = Field(default=4.0, gt=0.25, lt=64.0)
    """Prompt bytes per token before any counts have come back; calibrated from then on."""
    output_tokens: int = Field(default=256, ge=1, le=1_000_000)
    """Output expected of a request before any counts have come back; calibrated from then on."""
    circuit_breakers: CircuitBreakers = CircuitBreakers()
    """Envoy's limits for this pool."""
    outlier_detection: OutlierDetection = OutlierDetection()
    """When Envoy sets one of these endpoints aside."""


class Key(Section):
    """An API key, known by its hash alone."""

    sha256: Sha256
    """SHA-256 of the key in hex. Keys from 'steersman tenant key new' carry 256 bits of chance, so a
    plain hash is enough to keep them."""
    name: str = Field(default="", max_length=63)
    """What the key is called in reports."""


class Tenant(Section):
    """A billing and isolation unit."""

    name: Name
    """Its name in reports and headers."""
    keys: list[Key] = []
    """Keys that prove a request is this tenant's."""
    models: list[ModelName] | None = None
    """Models it may ask for; all when left out."""
    default_model: ModelName | None = None
    """The model of a request that names none (TGI's native routes); the gateway's when left out."""
    regions: list[Annotated[str, Field(min_length=1, max_length=63)]] | None = None
    """Regions that its requests may be served in; any when left out. Strict: none left means 403."""


class Tracing(Section):
    """Envoy's OpenTelemetry tracer."""

    otlp_grpc: IpPort
    """The collector's OTLP gRPC address."""
    service_name: str = Field(default="steersman-gateway", min_length=1)
    """The name that spans carry."""
    sample_percent: float = Field(default=100.0, ge=0.0, le=100.0)
    """The share of requests that is traced."""


class Gateway(Section):
    """What clients connect to: Envoy."""

    listen: IpPort = "127.0.0.1:8080"
    """Where clients connect."""
    envoy_admin: IpPort = "127.0.0.1:9901"
    """Envoy's own admin port; keep it on loopback."""
    services: list[Listen] = []
    """Where Envoy finds this service; service.listen's first when left out."""
    auth: Literal["api_key", "none"] = "api_key"
    """'api_key' asks every request for a tenant's key; 'none' makes all of them tenant 'anonymous'."""
    default_model: ModelName | None = None
    """The model of a request that names none; the first pool's first model when left out."""
    failure_mode: Literal["closed", "open"] = "closed"
    """When the service is away: 'closed' answers 503; 'open' sends requests, unauthenticated and
    unaccounted, to the default model's pool by Envoy's least-request balancer."""
    body_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """The largest request body; above it 413."""
    retries: int = Field(default=2, ge=0, le=8)
    """How many further endpoints Envoy tries when one refuses, answers 429, 502, 503 or 504, or resets."""
    connect_timeout_ms: int = Field(default=1_000, ge=10, le=60_000)
    """How long a connection to an endpoint may take."""
    first_byte_timeout_ms: int = Field(default=300_000, ge=100, le=3_600_000)
    """How long an endpoint may take to send response headers (a non-streamed answer comes whole)."""
    stream_idle_timeout_ms: int = Field(default=300_000, ge=1_000, le=3_600_000)
    """How long a stream may be silent before it is cut; never sooner than first_byte_timeout_ms where that
    is the larger, since Envoy's two timers of a try do not work together."""
    decision_timeout_ms: int = Field(default=2_000, ge=50, le=60_000)
    """How long Envoy waits for a decision; above it 504."""
    heartbeat_s: int = Field(default=5, ge=1, le=300)
    """How often Envoy reports on a request that still runs; keeps its reservation alive."""
    debug_headers: bool = False
    """Tell clients the pool, the endpoint, the attempts and the reason in x-steersman-* response headers."""
    tracing: Tracing | None = None
    """Traces go here; none when left out."""


class Service(Section):
    """The process that decides."""

    listen: list[Listen] = Field(default=["127.0.0.1:50051"], min_length=1)
    """Where it serves gRPC: ip:port or unix:/path, several allowed."""
    zone: str = Field(default="", max_length=63)
    """The zone it runs in; replicas of the same one are preferred."""
    drain_s: float = Field(default=10.0, ge=0.0, le=600.0)
    """How long open streams may take to end after SIGTERM."""


class TelemetryNode(Section):
    """A node whose agent may push."""

    name: Name
    """Its name, as its agent says it; with mutual TLS also a SAN of its certificate."""
    token_sha256: Sha256 | None = None
    """SHA-256 of its token in hex ('steersman tenant key new' makes one); not needed with mutual TLS."""
    networks: list[Network] = []
    """Networks (10.0.0.0/24) in which its replicas' addresses must lie; any when left out."""


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
    forget_s: int = Field(default=60, ge=3, le=86_400)
    """A replica that agents registered is forgotten when it was not spoken of for this long."""


class Sharing(Section):
    """What several services tell each other through Redis: telemetry, and work in flight."""

    redis: RedisUrl
    """Redis's address, such as redis://10.0.0.5:6379/0."""
    prefix: str = Field(default="steersman", min_length=1, max_length=63, pattern=r"^[A-Za-z0-9:._-]+$")
    """What its keys and channels begin with; services that share have the same."""
    interval_ms: int = Field(default=100, ge=20, le=5_000)
    """How often a change of the work in flight is told at the most."""


class Limits(Section):
    """Named bounds: what is held in memory, and for how long."""

    decisions_concurrent_max: int = Field(default=512, ge=1, le=100_000)
    """Decisions under way at once (bodies being received included); above it 429."""
    reservation_ttl_s: int = Field(default=60, ge=5, le=86_400)
    """A reservation whose request is not heard of for this long expires; each heartbeat renews it."""
    reservations_max: int = Field(default=100_000, ge=1, le=10_000_000)
    """Requests in flight that the ledger follows; above it 429."""
    settled_remembered_max: int = Field(default=65_536, ge=1024, le=10_000_000)
    """Settled request ids kept, so that a record that comes twice counts once."""


class Config(Section):
    """The whole file."""

    version: Literal[1] = 1
    """The file format's version."""
    gateway: Gateway = Gateway()
    """What clients connect to: Envoy."""
    service: Service = Service()
    """The process that decides."""
    limits: Limits = Limits()
    """Bounds on what is held in memory, and for how long."""
    telemetry: Telemetry | None = None
    """What node agents push to; no telemetry when left out."""
    sharing: Sharing | None = None
    """Redis between several services; each knows its own work alone when left out."""
    pools: list[Pool] = Field(min_length=1)
    """The replicas, grouped by the model they serve."""
    tenants: list[Tenant] = []
    """Who may ask; needed unless gateway.auth is 'none'."""

    @property
    def default_model(self) -> str:
        """The model of a request that names none and whose tenant has no default."""
        return self.gateway.default_model or self.pools[0].models[0]

    @property
    def service_addresses(self) -> list[str]:
        """Where Envoy finds the service(s), as `ip:port` or `unix:/path`."""
        return self.gateway.services or self.service.listen[:1]

    def pool_of(self, model: str) -> Pool | None:
        """The pool that serves a model name, or None."""
        return next((pool for pool in self.pools if model in pool.models), None)
