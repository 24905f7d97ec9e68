"""How often a request is tried, and how long each try may take.

Owns retries and the timeouts of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from envoy_data_plane.envoy.config.route.v3 import (
    RetryPolicy,
    RetryPolicyRetryBackOff,
    RetryPolicyRetryHostPredicate,
    RouteAction,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate

from extproc.config.model import GatewayConfig, ServiceClass
from extproc.control.pack import ms, packed

#: What is tried on another endpoint. `reset` covers refused and lost connections and per-try
#: timeouts, always before a response has begun: a stream that has begun is never retried. 401 and 403 are of
#: an engine that does not take our key; the client's never went there.
RETRY_ON = "reset,connect-failure,refused-stream,retriable-status-codes"
RETRIABLE_STATUS_CODES = (401, 403, 429, 502, 503, 504, 529)
#: Hosts are passed over if they were tried before; this many picks are made for that.
HOST_PICKS_MAX = 16
#: Another endpoint is free of the first one's trouble, so there is little to wait for.
BACK_OFF_MS = 10
BACK_OFF_MS_MAX = 100
#: Room above the sum of the tries, so that a try's own timeout always fires first.
IDLE_MARGIN_MS = 1_000


@dataclass(frozen=True, slots=True)
class RetryTiming:
    """How often and how long a request's tries last: the class's own, else the gateway's."""

    retries: int
    first_byte_timeout_ms: int
    stream_idle_timeout_ms: int

    @classmethod
    def of(cls, gateway: GatewayConfig, own: ServiceClass | None = None) -> RetryTiming:
        """The class's settings over the gateway's."""
        names = ("retries", "first_byte_timeout_ms", "stream_idle_timeout_ms")
        told = {name: getattr(own, name, None) for name in names}
        return cls(**{n: getattr(gateway, n) if value is None else value for n, value in told.items()})


def streamed(timing: RetryTiming, action: RouteAction) -> RouteAction:
    """For a stream: how often it is tried, and how long it may be silent."""
    # No bound on the whole: it may run for hours, as long as it is not silent.
    action.timeout = timedelta(0)
    action.idle_timeout = ms(_idle_ms(timing))
    action.retry_policy = _retry_policy(timing)
    return action


def whole(timing: RetryTiming, action: RouteAction) -> RouteAction:
    """For an answer that comes whole: its first byte is its last, and to wait for it longer is to wait.

    A try that times out would be tried again by `reset`, and generated once more on each endpoint. So no
    timer of a try: the route's idle timeout ends them together (504).
    """
    action = streamed(timing, action)
    action.idle_timeout = ms(timing.first_byte_timeout_ms)
    assert action.retry_policy is not None
    action.retry_policy.per_try_timeout = action.retry_policy.per_try_idle_timeout = None
    return action


def _tries_by_idling(timing: RetryTiming) -> bool:
    """Whether one idle timer bounds both the first byte and a stream's silence.

    Envoy has two timers for a try. The plain one counts to the response headers; the idle one counts
    silence, before the headers too. They do not work together: once the plain one has gone off in a
    running stream (and been ignored, since a stream is never retried) the idle one is dead.
    So the idle one alone serves where the first byte may take as long as a silence; the silence
    allowed is then the first byte's. Otherwise the plain one bounds a try, and the route's idle
    timeout the silence.
    """
    return timing.first_byte_timeout_ms >= timing.stream_idle_timeout_ms


def _idle_ms(timing: RetryTiming) -> int:
    """The route's idle timeout; it runs on across tries, so that it must outlast all of them."""
    tries_ms = (timing.retries + 1) * (timing.first_byte_timeout_ms + IDLE_MARGIN_MS)
    return max(timing.stream_idle_timeout_ms, tries_ms)


def _retry_policy(timing: RetryTiming) -> RetryPolicy:
    first_byte = ms(timing.first_byte_timeout_ms)
    idling = _tries_by_idling(timing)
    return RetryPolicy(
        retry_on=RETRY_ON,
        retriable_status_codes=list(RETRIABLE_STATUS_CODES),
        num_retries=timing.retries,
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
