"""Routes: with a decision to its cluster, without one to the failure mode.

Owns retries and the timeouts of a stream. `clear_route_cache` in the decision makes Envoy choose
again here, now with the cluster header set.
"""

from __future__ import annotations

from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
)
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    RetryPolicy,
    RetryPolicyRetryBackOff,
    RetryPolicyRetryHostPredicate,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate

from extproc.config.model import Config, Gateway
from extproc.control.pack import ms, packed
from extproc.core import contract

#: What is tried on another endpoint. `reset` covers refused and lost connections and per-try
#: timeouts, always before a response has begun: a stream that has begun is never retried.
RETRY_ON = "reset,connect-failure,refused-stream,retriable-status-codes"
RETRIABLE_STATUS_CODES = (429, 502, 503, 504)
#: Hosts are passed over if they were tried before; this many picks are made for that.
HOST_PICKS_MAX = 16
#: Another endpoint is free of the first one's trouble, so there is little to wait for.
BACK_OFF_MS = 10
BACK_OFF_MS_MAX = 100
#: Room above the sum of the tries, so that a try's own timeout always fires first.
IDLE_MARGIN_MS = 1_000

#: json_to_metadata holds a whole JSON answer back to read its counts; an answer above this ends as 500.
#: Streams are not held back, and requests have their own, smaller bound (the buffer filter's).
JSON_ANSWER_BYTES_MAX = 64 * 1024 * 1024

DECIDED_ROUTE = "decided"
UNDECIDED_ROUTE = "undecided"


def route_configuration(config: Config) -> RouteConfiguration:
    """One virtual host for every name."""
    host = VirtualHost(
        name="steersman",
        domains=["*"],
        routes=[_decided(config), _undecided(config)],
        request_body_buffer_limit=buffer_limit_bytes(config),
    )
    # The cluster header names a cluster at run time, so there is nothing to validate at load time.
    return RouteConfiguration(name="steersman", virtual_hosts=[host], validate_clusters=False)


def buffer_limit_bytes(config: Config) -> int:
    """What Envoy may buffer of a stream, either way.

    The listener's limit holds until a route is chosen, the virtual host's from then on (for the
    response and for the body that is kept for retries), so both are told the same.
    """
    return max(JSON_ANSWER_BYTES_MAX, config.gateway.body_bytes_max)


def _decided(config: Config) -> Route:
    return Route(
        name=DECIDED_ROUTE,
        match=RouteMatch(
            prefix="/", headers=[HeaderMatcher(name=contract.CLUSTER_HEADER, present_match=True)]
        ),
        route=_action(config.gateway, RouteAction(cluster_header=contract.CLUSTER_HEADER)),
        request_headers_to_remove=[contract.CLUSTER_HEADER, "x-envoy-internal"],
        response_headers_to_add=_debug_headers() if config.gateway.debug_headers else [],
    )


def _undecided(config: Config) -> Route:
    route = Route(name=UNDECIDED_ROUTE, match=RouteMatch(prefix="/"))
    pool = config.pool_of(config.default_model)
    if config.gateway.failure_mode == "open" and pool is not None:
        route.route = _action(config.gateway, RouteAction(cluster=contract.cluster_name(pool.name)))
    else:
        route.direct_response = DirectResponseAction(status=503, body=DataSource(inline_string="no decision"))
    return route


def _action(gateway: Gateway, action: RouteAction) -> RouteAction:
    # No bound on the whole: a stream may run for hours, as long as it is not silent.
    action.timeout = timedelta(0)
    action.idle_timeout = ms(_idle_ms(gateway))
    action.retry_policy = _retry_policy(gateway)
    return action


def _tries_by_idling(gateway: Gateway) -> bool:
    """Whether one idle timer bounds both the first byte and a stream's silence.

    Envoy has two timers for a try. The plain one counts to the response headers; the idle one counts
    silence, before the headers too. They do not work together: once the plain one has gone off in a
    running stream (and been ignored, since a stream is never retried) the idle one is dead.
    So the idle one alone serves where the first byte may take as long as a silence; the silence
    allowed is then the first byte's. Otherwise the plain one bounds a try, and the route's idle
    timeout the silence.
    """
    return gateway.first_byte_timeout_ms >= gateway.stream_idle_timeout_ms


def _idle_ms(gateway: Gateway) -> int:
    """The route's idle timeout; it runs on across tries, so that it must outlast all of them."""
    tries_ms = (gateway.retries + 1) * (gateway.first_byte_timeout_ms + IDLE_MARGIN_MS)
    return max(gateway.stream_idle_timeout_ms, tries_ms)


def _retry_policy(gateway: Gateway) -> RetryPolicy:
    first_byte = ms(gateway.first_byte_timeout_ms)
    idling = _tries_by_idling(gateway)
    return RetryPolicy(
        retry_on=RETRY_ON,
        retriable_status_codes=list(RETRIABLE_STATUS_CODES),
        num_retries=gateway.retries,
        per_try_timeout=None if idling else first_byte,
        per_try_idle_timeout=first_byte if idling else None,
        retry_host_predicate=[
            RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=packed(PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=HOST_PICKS_MAX,
        retry_back_off=RetryPolicyRetryBackOff(
            base_interval=ms(BACK_OFF_MS), max_interval=ms(BACK_OFF_MS_MAX)
        ),
    )


def _debug_headers() -> list[HeaderValueOption]:
    def decided(key: str) -> str:
        return f"%DYNAMIC_METADATA({contract.DECISION_NAMESPACE}:{key})%"

    values = {
        "x-steersman-pool": decided(contract.POOL_KEY),
        "x-steersman-reason": decided(contract.REASON_KEY),
        "x-steersman-endpoint": "%UPSTREAM_REMOTE_ADDRESS%",
        "x-steersman-attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    }
    return [
        HeaderValueOption(
            header=HeaderValue(key=key, value=value),
            append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        for key, value in values.items()
    ]
