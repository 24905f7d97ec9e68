"""The names that Envoy's configuration and the service must agree on.

Owns header and metadata names only. `control` renders them into Envoy; `wire` reads and writes them.
"""

from __future__ import annotations

#: The upstream cluster of the decision; Envoy's `cluster_header` route reads it.
CLUSTER_HEADER = "x-steersman-cluster"

#: Dynamic metadata that the `override_host` balancer reads: "ip:port,ip:port", tried in order.
LB_NAMESPACE = "envoy.lb"
LB_ENDPOINTS_KEY = "x-gateway-destination-endpoint"

#: Dynamic metadata of the decision; it rides with the request and comes back in the access log.
DECISION_NAMESPACE = "steersman"
#: The decision in one opaque string (wire/ticket.py).
TICKET_KEY = "ticket"
#: For people: what the debug response headers show.
POOL_KEY = "pool"
REASON_KEY = "reason"

#: What Envoy's own filters saw of the response.
OBSERVED_NAMESPACE = "steersman.observed"
#: Unix time of the first response body chunk, in microseconds, as a number or its decimal string.
FIRST_CHUNK_KEY = "first_chunk_us"
#: The last `index` of a TGI stream: tokens generated so far.
INDEX_KEY = "index"
#: OpenAI `usage`, and TGI's `details`, as they were in the body.
PROMPT_TOKENS_KEY = "prompt_tokens"
COMPLETION_TOKENS_KEY = "completion_tokens"

#: Response headers that TGI sends with a non-streamed answer; logged by the access log.
PROMPT_TOKENS_HEADER = "x-prompt-tokens"
GENERATED_TOKENS_HEADER = "x-generated-tokens"

#: A client may choose a model here when the route's body has no field for one.
MODEL_HEADER = "x-model"

#: Headers that a client must not set: Envoy strips them before any filter runs (law 7).
STRIPPED_HEADERS = (
    CLUSTER_HEADER,
    LB_ENDPOINTS_KEY,
    "x-gateway-destination-endpoint-subset",
    "x-gateway-destination-endpoint-served",
    "x-steersman-tenant",
    "x-steersman-class",
    "x-steersman-pool",
    "x-steersman-endpoint",
    "x-steersman-reason",
    "x-envoy-retry-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-original-path",
    "x-envoy-decorator-operation",
    "x-envoy-hedge-on-per-try-timeout",
)

#: The log names of our access log, so that a shared receiver can tell them apart.
ACCESS_LOG_NAME = "steersman"


def cluster_name(pool: str) -> str:
    """The upstream cluster (Envoy's) that serves a pool."""
    return f"pool.{pool}"
