"""Tenants in the file: their keys, quotas and service classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, Field, create_model

from extproc.config.cache import TenantCache
from extproc.config.section import OutlierDetection, Section
from extproc.config.spill import TenantSpill
from extproc.config.types import Floor, ModelName, Name, Sha256, StrategyName
from extproc.core.quota.values import KINDS, QuotaUnit


def _rate(row: QuotaUnit) -> tuple[Any, Any]:
    whole = row.scale == 1
    bounds: dict[str, float] = {"ge": 1, "le": row.most} if whole else {"gt": 0.0, "le": row.most}
    kind = int if whole else float
    return kind | None, Field(default=None, description=row.about, **bounds)  # type: ignore[call-overload]


if TYPE_CHECKING:
    Rates = Section
else:
    #: A setting for each row of the quotas' table.
    Rates = create_model("Rates", __base__=Section, **{row.name: _rate(row) for row in KINDS})


class Quota(Rates):
    """What may be used. Each limit stands alone; what is left out is not limited.

    Over a window a limit is a rate with a burst (GCRA): 60 requests a minute with burst 0.5 is one a
    second, and up to 30 at once.
    """

    concurrent_requests: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests in flight at once, held ones included."""
    burst: float = Field(default=1.0, ge=0.01, le=10.0)
    """How much of a window's worth may be used at once."""
    borrow: float = Field(default=1.0, ge=1.0, le=100.0)
    """Idle capacity may lift the rates to this multiple; given back at once under contention."""


class Adjust(Section):
    """How far a tenant's limits may follow its history (budgets never do)."""

    least: float = Field(default=1.0, gt=0.0, le=1.0)
    """They shrink to no less than this multiple. Below 1, which is what was bought, only after seven whole
    days that each stayed below three tenths of it, a tenth a day; all is back with the first refusals."""
    most: float = Field(default=2.0, ge=1.0, le=100.0)
    """They grow to no more than this multiple, while requests are refused; what was added goes again while
    most of it stays unused, and with the service's end."""


class ServiceClass(Section):
    """A service class: how long its requests may wait, and how Envoy isolates it."""

    name: Name
    """Its name; tenants choose one. The order of the list is the order of service."""
    hold_ms: int = Field(default=5_000, ge=0, le=240_000)
    """How long a request may be held for a replica before it is shed with 429."""
    held_max: int = Field(default=1_000, ge=0, le=1_000_000)
    """Requests of the class held at once; above it the newest are shed."""
    ttft_ms: int = Field(default=1_000, ge=10, le=600_000)
    """The time to first token it aims at: held requests that can still meet it go first."""
    tpot_ms: int = Field(default=100, ge=1, le=60_000)
    """The time for each further token that it aims at: no request is placed where it would spoil this for
    streams that run there (strategy `steer`)."""
    long_prompt_tokens: int = Field(default=4_000, ge=1, le=100_000_000)
    """Prompts above this many tokens have a target and a hold of their own."""
    long_ttft_ms: int = Field(default=5_000, ge=10, le=600_000)
    """The time to first token that a long prompt aims at, where that is above ttft_ms."""
    long_hold_ms: int = Field(default=9_000, ge=0, le=240_000)
    """How long one may be held, where that is above hold_ms and the class holds at all."""
    cold_hold_ms: int = Field(default=120_000, ge=0, le=3_540_000)
    """How long a request may be held while none of its pool's replicas is ready and one can be started
    (`pools[].scaling`); above it 503 with what is left of the load time as Retry-After. 0: not held. Envoy
    waits for an hour at most."""
    failure_mode: Literal["closed", "open"] | None = None
    """When the service is away; the gateway's when left out. Envoy alone knows a tenant by its JWT,
    certificate or trusted proxy, not by an API key: such requests get the gateway's mode, unless all
    classes have the same. An open class's tenants go to their default model's pool, but not those whose
    `regions` or `models` Envoy could not keep."""
    share_of_breakers: float = Field(default=1.0, gt=0.0, le=1.0)
    """The share of a pool's circuit breakers (retries in flight included) that its upstream cluster gets."""
    outlier_detection: OutlierDetection | None = None
    """When Envoy sets an endpoint aside for this class; the pool's when left out."""
    retries: int | None = Field(default=None, ge=0, le=8)
    """Further endpoints tried; the gateway's when left out."""
    first_byte_timeout_ms: int | None = Field(default=None, ge=100, le=3_600_000)
    """How long an endpoint may take to send response headers; the gateway's when left out."""
    stream_idle_timeout_ms: int | None = Field(default=None, ge=1_000, le=3_600_000)
    """How long a stream may be silent before it is cut; the gateway's when left out."""
    requests_per_second_floor: int | None = Field(default=None, ge=1, le=1_000_000)
    """What Envoy itself lets each client address through a second while the service is away and requests
    go on without it; not limited when left out. Where Envoy cannot tell the class, the least of all."""


class KeyConfig(Section):
    """An API key, known by its hash alone."""

    sha256: Sha256 | None = None
    """SHA-256 of the key in hex. Keys from 'steersman tenant key new' carry 256 bits of chance, so a
    plain hash is enough to keep them."""
    hmac_sha256: Sha256 | None = None
    """HMAC-SHA-256 of the key in hex, under the secret of `identity`: a leaked file does not allow to
    guess even weak keys. Either this or sha256."""
    name: str = Field(default="", max_length=63)
    """What the key is called in reports."""
    not_before: AwareDatetime | None = None
    """Not valid before this time (2026-12-01T00:00:00Z), so that keys rotate with an overlap."""
    expires: AwareDatetime | None = None
    """Not valid from this time on."""
    revoked: bool = False
    """No longer valid, whatever the times say."""
    quota: Quota | None = None
    """What this key alone may use, within the tenant's."""


class TenantConfig(Section):
    """A billing and isolation unit."""

    name: Name
    """Its name in reports and headers."""
    keys: list[KeyConfig] = []
    """Keys that prove a request is this tenant's."""
    models: list[ModelName] | None = None
    """Models it may ask for; all when left out."""
    default_model: ModelName | None = None
    """The model of a request that names none (TGI's native routes); the gateway's when left out."""
    service_class: Name = Field(default="standard", alias="class")
    """Its service class."""
    weight: float = Field(default=1.0, ge=0.01, le=1000.0)
    """Its share of full replicas against other tenants of its class."""
    held_max: int = Field(default=200, ge=0, le=100_000)
    """Its requests held at once; above it 429."""
    strategy: StrategyName | None = None
    """How its replicas are chosen; the pool's way when left out."""
    quality_floor: Floor | None = None
    """The smallest model that its requests for a family get: a model's name (holds for families that have
    it), or a rank, 1 the smallest. None when left out."""
    explain: bool = False
    """Whether its clients are told a decision's reason (x-steersman-reason) when they ask for it with the
    header 'x-steersman-explain: reason'."""
    trace_prompts: bool = False
    """Whether the text of its prompts stands in its spans (otel), up to otel.prompt_characters_max."""
    quota: Quota = Quota()
    """What it may use."""
    adjust: Adjust | None = None
    """Lets the limits follow history within these bounds; fixed when left out."""
    model_quotas: dict[ModelName, Quota] = {}
    """What it may use of single models, within the above."""
    cache: TenantCache | None = None
    """How its requests are answered from the cache (`cache`); as the pools say when left out."""
    spill: TenantSpill | None = None
    """Lets its requests go to other pools, such as a provider's, where their own has `spill` (`spill: {}`);
    they stay when left out."""
    away_model: ModelName | None = None
    """The model that serves its requests for one that is only at another site, while that is away; they wait
    and fail when left out."""
    jwt_subject: str | None = Field(default=None, min_length=1, max_length=256)
    """The value of the gateway's JWT claim (gateway.jwt) that is this tenant's."""
    certificate_sans: list[Annotated[str, Field(min_length=1, max_length=256)]] = []
    """Names in client certificates (gateway.tls with client_ca) that are this tenant's: the first URI or
    the first DNS name of a certificate."""
    regions: list[Annotated[str, Field(min_length=1, max_length=63)]] | None = None
    """Regions that its requests may be served in; any when left out. Strict: none left means 403."""
