"""The shape of `steersman.yaml`: pydantic models with every default and bound.

Owns names, defaults, ranges and the checks across sections. Knows nothing of files (load.py), of
Envoy or of the running service. Every message says what is wrong and what to write instead,
because `steersman check` prints it as it stands.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")

StrategyName = Literal["round_robin", "random", "least_request", "power_of_two", "least_work"]


def _name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name; write 1 to 63 of a-z, 0-9, '.', '_' and '-', "
            "beginning and ending with a letter or a digit"
        )
    return value


def _ip_port(value: str) -> str:
    """Canonical `ip:port`: Envoy's override_host compares strings, so one address has one spelling."""
    host, colon, port = value.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{value!r} has no port; write ip:port, such as 127.0.0.1:8080")
    if len(port) > 5 or not 1 <= int(port) <= 65535:
        raise ValueError(f"port {port} is not within 1 to 65535")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        hint = "127.0.0.1" if host == "localhost" else "its address"
        raise ValueError(
            f"{host!r} is not an IP address; Envoy picks endpoints by ip:port, so write {hint}:{port}"
        ) from None
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


def _listen(value: str) -> str:
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path:
            raise ValueError("'unix:' has no path; write unix:/run/steersman/extproc.sock")
        # sun_path holds 108 bytes with its terminator; a longer one fails at bind with a riddle.
        if len(path.encode()) > 107:
            raise ValueError(f"the socket's path has {len(path.encode())} bytes; the system allows 107")
        return value
    return _ip_port(value)


def _sha256(value: str) -> str:
    lowered = value.lower().removeprefix("sha256:")
    if not SHA256_PATTERN.fullmatch(lowered):
        raise ValueError(
            "not a SHA-256 in hex (64 digits); make a key and its hash with 'steersman tenant key new'"
        )
    return lowered


Name = Annotated[str, AfterValidator(_name)]
IpPort = Annotated[str, AfterValidator(_ip_port)]
Listen = Annotated[str, AfterValidator(_listen)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]


class Section(BaseModel):
    """A section of the file: unknown keys are mistakes, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Endpoint(Section):
    """One model-server replica."""

    address: IpPort
    """Where it listens, as ip:port."""
    zone: str = ""
    """Its availability zone; empty when there is one only."""
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
    endpoints: list[Endpoint] = Field(min_length=1)
    """The replicas."""
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
    drain_s: float = Field(default=10.0, ge=0.0, le=600.0)
    """How long open streams may take to end after SIGTERM."""


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


Loc = tuple[str | int, ...]


def cross_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Yield (location, message) for each mistake that only shows between sections."""
    yield from _repeats((("pools", i, "name"), pool.name) for i, pool in enumerate(config.pools))
    yield from _repeats((("tenants", i, "name"), tenant.name) for i, tenant in enumerate(config.tenants))
    yield from _repeats(
        (("pools", i, "models", j), model)
        for i, pool in enumerate(config.pools)
        for j, model in enumerate(pool.models)
    )
    yield from _repeats(
        (("pools", i, "endpoints", j, "address"), endpoint.address)
        for i, pool in enumerate(config.pools)
        for j, endpoint in enumerate(pool.endpoints)
    )
    yield from _repeats(
        (("tenants", i, "keys", j, "sha256"), key.sha256)
        for i, tenant in enumerate(config.tenants)
        for j, key in enumerate(tenant.keys)
    )
    served = sorted({model for pool in config.pools for model in pool.models})
    for location, model in _named_models(config):
        if model not in served:
            yield location, f"no pool serves {model!r}; pools serve {', '.join(served)}"
    for i, tenant in enumerate(config.tenants):
        if tenant.models is not None and tenant.default_model and tenant.default_model not in tenant.models:
            yield (
                ("tenants", i, "default_model"),
                (f"{tenant.default_model!r} is not among the tenant's models; add it to tenants[{i}].models"),
            )
        if config.gateway.auth == "api_key" and not tenant.keys:
            yield (
                ("tenants", i, "keys"),
                ("the tenant has no key and can never be let in; make one with 'steersman tenant key new'"),
            )
    if config.gateway.auth == "api_key" and not config.tenants:
        yield (
            ("tenants",),
            (
                "gateway.auth is 'api_key' but no tenant is listed, so every request would get 401; "
                "list a tenant with a key, or set gateway.auth: none"
            ),
        )
    if config.limits.reservation_ttl_s < 3 * config.gateway.heartbeat_s:
        yield (
            ("limits", "reservation_ttl_s"),
            (
                f"{config.limits.reservation_ttl_s} s is less than three heartbeats; running requests would "
                f"expire. Write {3 * config.gateway.heartbeat_s} or more, or lower gateway.heartbeat_s"
            ),
        )
    yield from _repeats((("service", "listen", i), where) for i, where in enumerate(config.service.listen))
    if config.gateway.listen == config.gateway.envoy_admin:
        yield ("gateway", "envoy_admin"), f"{config.gateway.listen} is gateway.listen's too; use another port"


def _repeats(items: Iterator[tuple[Loc, str]]) -> Iterator[tuple[Loc, str]]:
    seen: dict[str, Loc] = {}
    for location, value in items:
        if value in seen:
            yield location, f"{value!r} is already at {dotted(seen[value])}; each must be the only one"
        else:
            seen[value] = location


def _named_models(config: Config) -> Iterator[tuple[Loc, str]]:
    if config.gateway.default_model:
        yield ("gateway", "default_model"), config.gateway.default_model
    for i, tenant in enumerate(config.tenants):
        if tenant.default_model:
            yield ("tenants", i, "default_model"), tenant.default_model
        for j, model in enumerate(tenant.models or []):
            yield ("tenants", i, "models", j), model


def dotted(location: Loc) -> str:
    """`("pools", 0, "name")` as `pools[0].name`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
