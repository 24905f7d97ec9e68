"""The section of the endpoint-picker protocol (Gateway API Inference Extension)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from extproc.config.section import Section
from extproc.config.types import Name


class PickerConfig(Section):
    """Other gateways' picker: Istio, Envoy Gateway, kgateway and others ask over the same port."""

    enabled: bool = False
    """Whether streams of that protocol are served; off when left out."""
    assume: bool = False
    """Whether a stream that does not say how its bodies come is of that protocol: for gateways that do not
    say it (Envoy 1.40 does)."""
    settle: Literal["stream", "access_log"] = "stream"
    """Where a request's end is learnt: from the 'stream', which stays open and carries the response through
    this service; or from our 'access_log' in the gateway, so that the stream ends with the decision."""
    deadline_ms: int = Field(default=30_000, ge=100, le=3_600_000)
    """How long the body may take and a request be held, together; Envoy itself bounds neither here. A body
    that is late gets 408, a request that was held 429."""
    bodies_bytes_max: int = Field(default=256 * 1024 * 1024, ge=1024, le=64 * 1024**3)
    """Request bodies in memory, all streams together; above it 429."""
    clear_route_cache: bool = False
    """Whether the gateway chooses the route again after the decision."""
    trust_headers: bool = False
    """Whether x-llm-d-inference-fairness-id names the tenant (with gateway.auth none),
    x-llm-d-inference-objective the service class, and x-llm-d-slo-ttft-ms and x-llm-d-slo-tpot-ms the
    targets. Only for a gateway that sets or strips them: clients could choose their class."""
    header_names: Literal["llm-d", "gateway"] = "llm-d"
    """How those four are called: as above, or 'gateway', as the inference extension's own picker reads them
    (x-gateway-inference-fairness-id, x-gateway-inference-objective, x-slo-ttft-ms, x-slo-tpot-ms). The other
    names are a client's word."""
    objectives: dict[Annotated[str, Field(min_length=1, max_length=253)], Name] = Field(
        default={}, max_length=256
    )
    """Service classes by the objective's name; one that is not here is the class of the same name, if any."""
    discover: bool = False
    """Whether an endpoint that the gateway names in its subset, and that is in no pool, joins the pool of the
    request's model."""
    tries: int = Field(default=1, ge=1, le=8)
    """How often the gateway tries a request (its retries and one), where it does not let a decision say
    (mutation_rules for x-envoy-max-retries). Above 1 endpoints are named again and again, so that no try
    comes to the list's end. There Envoy would take any endpoint of the cluster, out of tenants' regions and
    above permits."""
    forget_s: int = Field(default=60, ge=3, le=86_400)
    """An endpoint that joined so is forgotten when no subset named it for this long."""
