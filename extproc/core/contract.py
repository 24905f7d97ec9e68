"""The names that Envoy's configuration and the service must agree on.

Owns header and metadata names only. `control` renders them into Envoy; `wire` reads and writes them.
"""

from __future__ import annotations

#: What only we say, to engines and to clients.
OUR_PREFIX = "x-steersman-"
#: The upstream cluster of the decision; Envoy's `cluster_header` route reads it.
CLUSTER_HEADER = "x-steersman-cluster"

#: Dynamic metadata that the `override_host` balancer reads: "ip:port,ip:port", tried in order.
LB_NAMESPACE = "envoy.lb"
LB_ENDPOINTS_KEY = "x-gateway-destination-endpoint"
#: Who served, as a gateway says with the response.
LB_SERVED_KEY = "x-gateway-destination-endpoint-served"
#: How many further endpoints Envoy tries: a decision says no more than its list holds.
RETRIES_HEADER = "x-envoy-max-retries"
#: Filter metadata in which a gateway says which endpoints a picker may choose from.
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET_KEY = "x-gateway-destination-endpoint-subset"

#: Request headers of a gateway that asks a picker: who shares fairly, the service class, targets in
#: milliseconds. llm-d's names, and those of the inference extension's own picker (its release 1.5).
FAIRNESS_HEADER, GATEWAY_FAIRNESS_HEADER = "x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"
OBJECTIVE_HEADER, GATEWAY_OBJECTIVE_HEADER = "x-llm-d-inference-objective", "x-gateway-inference-objective"
SLO_TTFT_HEADER, GATEWAY_SLO_TTFT_HEADER = "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"
SLO_TPOT_HEADER, GATEWAY_SLO_TPOT_HEADER = "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"
#: Response header of a request that a picker dropped: why.
DROPPED_HEADER = "x-llm-d-request-dropped-reason"

#: Dynamic metadata of the decision; it rides with the request and comes back in the access log.
DECISION_NAMESPACE = "steersman"
#: The decision in one opaque string (wire/ticket.py).
TICKET_KEY = "ticket"
#: For people: what the debug response headers show.
POOL_KEY = "pool"
REASON_KEY = "reason"
#: For the first-token event: which request it is of, and Envoy's cluster of the service that decided.
RESERVATION_KEY = "reservation"
#: Whose trace the request is of, where it is followed (observe/tracing/propagation.py).
TRACE_KEY = "trace"
EVENT_CLUSTER_KEY = "event_cluster"
#: The answer is to be kept: Envoy gathers it up to so many bytes, and posts it to the service that decided.
CACHE_KEY = "cache"
#: Usage that was asked for in the client's name, and is taken out of the stream again: "last" the event that
#: holds it alone, "every" that of events with a choice; both with a blank between.
USAGE_KEY = "usage"

#: Response headers with the rate limits' figures; the decision's metadata holds each under its own name.
RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{figure}-{of}"
    for of in ("requests", "tokens")
    for figure in ("limit", "remaining", "reset")
)

#: Response headers of a request for a family: the model that it got, and why not the one it should have.
ANSWERED_MODEL_HEADER = "x-steersman-model"
SHIFTED_HEADER = "x-steersman-model-shifted"
FAMILY_HEADERS = (ANSWERED_MODEL_HEADER, SHIFTED_HEADER)
#: Why a request was served by another pool than its model's (core/spill).
SPILLED_HEADER = "x-steersman-spilled"

#: Whose request another site sends on, signed (core/remote/identity.py); and what its question proves. No
#: engine sees it, and a client's own is worth nothing.
SITE_HEADER = "x-steersman-site"
#: Where it is asked what it offers, at its gateway.
SITE_PATH = "/steersman/v1/site"
#: For a request that failed in one pool and is tried in another: where its model's name begins in its body,
#: how many bytes that takes, and the name in the second as JSON; blanks between. Not said of equal names.
SECOND_MODEL_KEY = "second_model"
#: "1" where the request goes to another site, whose 401 is about the word that goes along.
SITE_KEY = "to_site"
#: The keys of both pools, until it is known which try it is. No engine sees these headers.
KEY_THERE_HEADER, KEY_HOME_HEADER = "x-steersman-key-there", "x-steersman-key-home"

#: A client asks for the decision's reason (`reason`), and is told where its tenant may know.
EXPLAIN_HEADER = "x-steersman-explain"
REASON_HEADER = "x-steersman-reason"
#: The reason once more, where it was asked for and may be told.
EXPLAINED_KEY = "explained"

#: A client says whether it may be answered from the cache (use, refresh, off), and is told of a hit and its
#: age in seconds (hit; age=12).
CACHE_HEADER = "x-steersman-cache"

#: What Envoy's own filters saw of the response.
OBSERVED_NAMESPACE = "steersman.observed"
#: Unix time of the first response body chunk, in microseconds, as a number or its decimal string.
FIRST_CHUNK_KEY = "first_chunk_us"
#: True when a stream's first chunk said that the engine was overloaded: a refusal inside a 200.
REFUSED_KEY = "refused"
#: True when the engine did not take the key that it was shown: 401 or 403.
KEY_REFUSED_KEY = "key_refused"
#: What the engine said of an error inside a 200, from its name on, cut.
ERROR_KEY = "error"
#: What stands before it where no error was named: a page, or another's words, in an answer's place.
NO_ANSWER = "no answer: "
#: Events of a stream that held a token, so far; and true once its end was seen (OpenAI's [DONE]).
EVENTS_KEY = "events"
DONE_KEY = "done"
#: The id of an answer that its engine keeps (OpenAI's responses), as far as it is a response's.
RESPONSE_ID_KEY = "response_id"
#: The last `index` of a TGI stream: tokens generated so far.
INDEX_KEY = "index"
#: OpenAI `usage`, and TGI's `details`, as they were in the body. TGI counts the best sequence alone.
PROMPT_TOKENS_KEY = "prompt_tokens"
COMPLETION_TOKENS_KEY = "completion_tokens"
GENERATED_TOKENS_KEY = "generated_tokens"
#: Prompt tokens that the engine found in its prefix cache, where it says so.
CACHED_TOKENS_KEY = "cached_tokens"
#: Prompt and output together, of answers that may say nothing else.
TOTAL_TOKENS_KEY = "total_tokens"
#: What answers say on routes of the file's own, in places of its choice. By names of their own, so that no
#: other route's answer is charged by what stands in such a place: some repeat there what their client sent.
OWN_INPUT_KEY = "own_input_tokens"
OWN_OUTPUT_KEY = "own_output_tokens"
#: Of Anthropic's `usage`, whose `input_tokens` hold neither: what a cache held, and what was put into one.
CACHE_READ_TOKENS_KEY = "cache_read_tokens"
CACHE_WRITTEN_TOKENS_KEY = "cache_written_tokens"

#: The first-token event: a gRPC unary call of Envoy's Lua filter to the service, without a message.
EVENT_SERVICE = "steersman.event.v1.Events"
EVENT_METHOD = "FirstToken"
#: The same with a whole answer in it, where the decision asked for that (CACHE_KEY).
FILL_METHOD = "Fill"
#: Headers of that call: the reservation's id; "1" with a refusal, else absent; "ip:port" of who answers.
RESERVATION_HEADER = "x-steersman-reservation"
REFUSED_HEADER = "x-steersman-refused"
#: The route puts it on the answer, where the Lua filter takes it away: it has no other way to know.
SERVED_HEADER = "x-steersman-served"

#: Response headers that TGI sends with a non-streamed answer; logged by the access log.
PROMPT_TOKENS_HEADER = "x-prompt-tokens"
GENERATED_TOKENS_HEADER = "x-generated-tokens"

#: What an engine must not see: it might pack its answer, and nobody here could read its counts and events.
ENCODING_HEADER = "accept-encoding"

#: A client may choose a model here when the route's body has no field for one.
MODEL_HEADER = "x-model"

#: What Envoy says of who asks, beside the headers. Nothing of it can come from a client: the JWT filter's
#: metadata, and connection attributes.
JWT_NAMESPACE = "envoy.filters.http.jwt_authn"
JWT_PAYLOAD_KEY = "payload"
JWT_FAILURE_KEY = "failure"
#: ext_proc's attributes come under this name.
ATTRIBUTES_NAMESPACE = "envoy.filters.http.ext_proc"
#: "ip:port" of the connection's other end.
SOURCE_ATTRIBUTE = "source.address"
#: "ip:port" of who serves the request, where Envoy is asked for it with the response.
UPSTREAM_ATTRIBUTE = "upstream.address"
#: The first name of either kind in a client certificate that Envoy verified.
SAN_ATTRIBUTES = ("connection.uri_san_peer_certificate", "connection.dns_san_peer_certificate")
#: Its subject, so that one without such names can be spoken of.
SUBJECT_ATTRIBUTE = "connection.subject_peer_certificate"

#: Set by Envoy itself, for its own routes, where it must tell tenants apart without the service.
PEER_URI_HEADER = "x-steersman-peer-uri"
PEER_DNS_HEADER = "x-steersman-peer-dns"
#: The connection's own address, where a proxy says another one of the client: a proxy is known by its own.
PEER_ADDRESS_HEADER = "x-steersman-peer-address"

#: The decision says of an answer that it comes whole: Envoy does not try it again for being slow.
WHOLE_HEADER = "x-steersman-whole"
#: And of a request that it cannot be sent again: a form of which the head alone was looked at.
ONCE_HEADER = "x-steersman-once"
#: Set by a decision of ours: what stands before the path at this pool's replicas. Its cluster takes it away.
PATH_PREFIX_HEADER = "x-steersman-path-prefix"

#: Headers that no client may set: Envoy strips them before any filter runs (law: nothing sent is trusted).
STRIPPED_HEADERS = (
    CLUSTER_HEADER,
    LB_ENDPOINTS_KEY,
    SUBSET_KEY,
    LB_SERVED_KEY,
    "x-steersman-tenant",
    "x-steersman-class",
    "x-steersman-pool",
    "x-steersman-endpoint",
    REASON_HEADER,
    PEER_URI_HEADER,
    PEER_DNS_HEADER,
    PEER_ADDRESS_HEADER,
    WHOLE_HEADER,
    ONCE_HEADER,
    PATH_PREFIX_HEADER,
    KEY_THERE_HEADER,
    KEY_HOME_HEADER,
    "x-envoy-retry-on",
    RETRIES_HEADER,
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-original-path",
    "x-envoy-decorator-operation",
    "x-envoy-hedge-on-per-try-timeout",
)

#: What a provider says of its rate limits, by the upstream cluster: the client is told its tenant's own under
#: the same names. The Lua filter takes it away, and notes it.
PROVIDER_HEADER = "x-steersman-provider"
PROVIDER_KEY = "provider"
#: Requests left, their reset, tokens left, their reset, Retry-After; "-" for what is not there.
PROVIDER_FORMAT = " ".join(
    f"%RESP({name})%"
    for name in (
        *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("remaining", "reset")),
        "retry-after",
    )
)
PROVIDER_SILENT = "- - - - -"
#: A request was tried in another pool in vain, and then at home: the status there; "lost" where nothing was
#: answered, "late" where that was for want of time. And what that pool said of its rate limits.
FAILED_THERE_KEY = "failed_there"
FAILED_LOST, FAILED_LATE = "lost", "late"
#: The same of one that was tried at home in vain, and then in another pool.
FAILED_HOME_KEY = "failed_home"
PROVIDER_THERE_KEY = "provider_there"

#: The log names of our access log, so that a shared receiver can tell them apart.
ACCESS_LOG_NAME = "steersman"


#: Parts a cluster's name; no pool and no class has it in its own, so that no two clusters share a name.
CLASS_SEPARATOR = "/"


def cluster_name(pool: str, service_class: str) -> str:
    """The upstream cluster (Envoy's): a pool as seen by one service class."""
    return f"pool.{pool}{CLASS_SEPARATOR}{service_class}"


def away_cluster_name(pool: str, service_class: str) -> str:
    """The same for requests without a decision: Envoy's own balancer chooses there, and there alone."""
    return f"away.{pool}{CLASS_SEPARATOR}{service_class}"


def returning_cluster_name(pool: str, home: str, service_class: str) -> str:
    """The same where a request that fails in another pool is tried in pool `home` after it."""
    return f"returning.{pool}{CLASS_SEPARATOR}{home}{CLASS_SEPARATOR}{service_class}"


def onward_cluster_name(home: str, pool: str, tries: int, service_class: str) -> str:
    """The same where a request that fails so often at home is tried in another pool."""
    parts = (f"onward.{home}", pool, str(tries), service_class)
    return CLASS_SEPARATOR.join(parts)


def key_name(pool: str) -> str:
    """What the engines' own key of a pool is called among Envoy's secrets."""
    return f"key.{pool}"


def assignment_name(pool: str) -> str:
    """What a pool's endpoints are called over EDS: all its clusters take the same."""
    return f"pool.{pool}"
