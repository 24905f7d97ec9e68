"""Pools in the file: models, the replicas that serve them, and where replicas are learnt of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from extproc import engines
from extproc.config.adapters import AdaptersConfig
from extproc.config.cache import PoolCache
from extproc.config.scaling import PoolScaling
from extproc.config.section import RELOADABLE, CircuitBreakers, OutlierDetection, Section
from extproc.config.sites import RemotePool
from extproc.config.spill import RateLimitsConfig, SpillConfig
from extproc.config.tokenizers import PoolTokenizer
from extproc.config.types import (
    EndpointAddress,
    EngineName,
    ModelName,
    Name,
    Parameters,
    StrategyName,
)
from extproc.config.upstream import Upstream


class EndpointConfig(Section):
    """One model-server replica."""

    address: EndpointAddress
    """Where it listens: ip:port, or host:port, whose every A and AAAA record is a replica."""
    zone: str = ""
    """Its availability zone; empty when there is one only."""
    region: str = Field(default="", max_length=63)
    """Its region; tenants with `regions` are served there alone."""
    max_concurrent: int = Field(default=128, ge=1, le=65_536)
    """Requests it takes at once (TGI's max_concurrent_requests); above it TGI refuses inside a 200."""
    hardware: str = Field(default="", max_length=96)
    """The card's name as NVML says it ("NVIDIA L4"); the pool's, or what its agent says, when left out.
    What is expected of it before any traffic follows from that."""
    gpus: int | None = Field(default=None, ge=1, le=64)
    """How many of them serve the model together; the pool's when left out."""
    kv_capacity_tokens: int | None = Field(default=None, ge=0, le=1_000_000_000)
    """KV tokens that it holds (TGI does not say); the pool's, or what its agent says, when left out."""
    price_per_hour: float | None = Field(default=None, ge=0.0, le=1e6)
    """What an hour of it costs; the pool's when left out."""
    spot: bool = False
    """Whether it is capacity that may vanish (strategy `cost`)."""


class DnsConfig(Section):
    """A name whose addresses are replicas."""

    name: str = Field(min_length=1, max_length=253)
    """The host name; every A and AAAA record of it is a replica."""
    port: int = Field(ge=1, le=65535)
    """The port of each."""
    interval_s: float = Field(default=5.0, ge=1.0, le=3600.0)
    """How often it is resolved."""
    gone_after_s: float = Field(default=60.0, ge=0.0, le=86_400.0)
    """When the name has had no address for so long ("no such name": a service scaled to none), its replicas
    leave. A resolver that fails says nothing of the name: then they stay."""


class Discovery(Section):
    """Where replicas come from besides the list."""

    dns: list[DnsConfig] = Field(default=[], max_length=64)
    """Names to resolve."""
    file: str | None = None
    """A YAML or JSON file with `endpoints:`, watched; a bad one changes nothing."""
    agents: bool = False
    """Whether node agents may register replicas for this pool: each within the `networks` of its node, and
    served from when the service's own look was answered. What agents say of listed replicas counts anyway."""


class PriceConfig(Section):
    """What a pool's work costs, in the currency of the budgets."""

    input_per_million: float = Field(default=0.0, ge=0.0, le=1e6)
    """A million prompt tokens."""
    output_per_million: float = Field(default=0.0, ge=0.0, le=1e6)
    """A million generated tokens."""


class PoolConfig(Section):
    """Endpoints that serve the same model."""

    name: Name
    """Its name in reports, headers and Envoy's clusters."""
    models: Annotated[list[ModelName], RELOADABLE] = Field(min_length=1)
    """The model names that clients ask for; the first is the one told to engines' native routes."""
    engine: EngineName = engines.DEFAULT
    """What the replicas run; packages add engines (docs/plugins.md)."""
    upstream: Upstream = Upstream()
    """How its replicas are reached: TLS, HTTP/2, a path before theirs, headers, their own key."""
    ask_usage: bool = True
    """Ask the engine for the token counts of streams whose client did not, and take them out of the answer
    again; without it such streams are charged by an estimate (docs/metering.md)."""
    strategy: Annotated[StrategyName, RELOADABLE] = "steer"
    """How a replica is chosen."""
    strategy_parameters: Annotated[dict[StrategyName, Parameters], RELOADABLE] = Field(default={})
    """Parameters by strategy: of the pool's, and of those that tenants and experiments use here."""
    hardware: Annotated[str, RELOADABLE] = Field(default="", max_length=96)
    """The card of its replicas as NVML names it; what their agents say when left out."""
    gpus: Annotated[int, RELOADABLE] = Field(default=1, ge=1, le=64)
    """Cards of one replica."""
    kv_capacity_tokens: Annotated[int, RELOADABLE] = Field(default=0, ge=0, le=1_000_000_000)
    """KV tokens that a replica holds; 0 when not known: then what agents say, else no bound by memory."""
    tokenizer: Annotated[PoolTokenizer | None, RELOADABLE] = None
    """The model's own tokenizer (docs/tokenizers.md); prompts are estimated by their bytes when left out."""
    prefill_budget_tokens: Annotated[int, RELOADABLE] = Field(default=4096, ge=1, le=10_000_000)
    """Prompt tokens that a replica computes in one step (TGI's max_batch_prefill_tokens)."""
    price_per_hour: Annotated[float, RELOADABLE] = Field(default=0.0, ge=0.0, le=1e6)
    """What an hour of a replica costs (strategy `cost`); 0 when not known."""
    endpoints: list[EndpointConfig] = Field(default=[])
    """The replicas that are known beforehand."""
    discovery: Discovery = Discovery()
    """Where further replicas come from."""
    scaling: Annotated[PoolScaling | None, RELOADABLE] = None
    """How many replicas it may have, and when that changes; as many as there are when left out."""
    cache: Annotated[PoolCache | None, RELOADABLE] = None
    """Whether its answers are cached (`cache`); where tenants say so when left out."""
    adapters: Annotated[AdaptersConfig | None, RELOADABLE] = None
    """Which of its models are LoRA adapters of one base; none when left out."""
    remote: RemotePool | None = None
    """The pool is another site: its endpoints are that one's gateway; replicas of our own when left out."""
    spill: Annotated[SpillConfig | None, RELOADABLE] = None
    """Where its requests go that it cannot serve in time; they wait when left out."""
    rate_limits: Annotated[RateLimitsConfig | None, RELOADABLE] = None
    """What the provider behind it lets our account do, where other pools spill to it."""
    tenants: Annotated[list[Name] | None, RELOADABLE] = Field(default=None, min_length=1, max_length=10_000)
    """The tenants that it is reserved for: to all others its models are not there, and neither its replicas
    nor their prefix caches are shared with them. Everybody's when left out."""
    zone_penalty_tokens: Annotated[int, RELOADABLE] = Field(default=2_000, ge=0, le=10_000_000)
    """A replica in another zone than the service's counts as if this much more work waited on it: the
    same zone is preferred while it is not worse by that."""
    price: Annotated[PriceConfig, RELOADABLE] = PriceConfig()
    """What its work costs; nothing when left out."""
    bytes_per_token: Annotated[float, RELOADABLE] = Field(default=4.0, gt=0.25, lt=64.0)
    """Prompt bytes per token before any counts have come back; calibrated from then on."""
    output_tokens: Annotated[int, RELOADABLE] = Field(default=256, ge=1, le=1_000_000)
    """Output expected of a request before any counts have come back; calibrated from then on."""
    circuit_breakers: CircuitBreakers = CircuitBreakers()
    """Envoy's limits for this pool."""
    outlier_detection: OutlierDetection = OutlierDetection()
    """When Envoy sets one of these endpoints aside."""
