"""The section of OpenTelemetry: where spans and GenAI metrics go, and what they may tell."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from extproc.config.section import Section

#: What may be a header's name and an attribute's name.
Token = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._-]+$")]
Value = Annotated[str, Field(max_length=4096)]


class OpenTelemetry(Section):
    """The service's own spans, and the GenAI metrics, to a collector (OTLP). Envoy's spans are
    gateway.tracing's; both join one trace."""

    endpoint: str = Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$", max_length=2048)
    """The collector, such as http://10.0.0.5:4317 (gRPC) or https://ingest.latitude.so (HTTP; /v1/traces
    and /v1/metrics are added). https means TLS."""
    protocol: Literal["grpc", "http"] = "grpc"
    """OTLP over 'grpc' (usually port 4317), or over 'http' as protobuf (usually 4318)."""
    ca_file: str | None = Field(default=None, min_length=1)
    """The authority of the collector's certificate, a PEM file; the system's own when left out."""
    headers: dict[Token, Value] = Field(default={}, max_length=32)
    """Headers of each export; what is secret belongs into headers_file or headers_env."""
    headers_file: str | None = Field(default=None, min_length=1)
    """A file with further headers, a line each: 'authorization: Bearer KEY'."""
    headers_env: str | None = Field(default=None, min_length=1, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """An environment variable with further headers, in the same form."""
    traces: bool = True
    """Whether spans are sent."""
    metrics: bool = True
    """Whether the GenAI metrics are sent."""
    sample_ratio: float = Field(default=1.0, ge=0.0, le=1.0)
    """The share of requests with spans where nobody has decided before: a parent's own flag always holds."""
    client_parent: bool = True
    """Whether a client's traceparent header counts where Envoy sent none, its tracer being off."""
    semconv: Literal["1.36", "1.41", "0.1", "0.1/dup"] = "0.1/dup"
    """Which release of the GenAI conventions gives the names: OpenTelemetry's 1.36 (gen_ai.system) or 1.41,
    or 0.1 of the GenAI conventions' own repository. '0.1/dup' is 0.1 and beside it the metrics that it
    renamed, by their 1.41 names."""
    service_name: str = Field(default="steersman", min_length=1, max_length=255)
    """What the service is called (service.name)."""
    resource: dict[Token, Value] = Field(default={}, max_length=64)
    """Further attributes of the service, such as deployment.environment.name."""
    users: Literal["none", "hashed", "named"] = "hashed"
    """The conversation that a request names (`session_id`, else `user`): left out, 'hashed' (the beginning
    of its SHA-256: who knows a name finds it), or as it is."""
    prompt_characters_max: int = Field(default=4096, ge=1, le=1_000_000)
    """Characters kept of a prompt, over all its messages, of tenants with trace_prompts; no others' are."""
    queue_max: int = Field(default=10_000, ge=16, le=1_000_000)
    """Spans that wait to be built, and spans that wait to be sent; what is above is dropped and counted."""
    export_interval_ms: int = Field(default=1_000, ge=50, le=60_000)
    """How long spans are gathered before they are sent."""
    metrics_interval_s: float = Field(default=15.0, ge=0.1, le=3600.0)
    """How often metrics are sent."""
    timeout_ms: int = Field(default=5_000, ge=100, le=60_000)
    """How long one export may take, its retries included; what it held is lost then, and counted."""

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not (self.traces or self.metrics):
            raise ValueError("neither traces nor metrics are sent; leave the section out instead")
        if self.protocol == "grpc" and "/" in self.endpoint.partition("://")[2].rstrip("/"):
            raise ValueError(
                "endpoint has a path, which gRPC has no use for; remove it, or write protocol: http"
            )
        return self
