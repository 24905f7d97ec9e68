"""Routes: with a decision to its cluster, without one to the failure mode.

A class with retries or timeouts of its own has a route of its own. While the service is away, tenants that
Envoy knows by itself go by their class's failure mode, everybody else by the gateway's (config/away.py).

How often each is tried is tries.py's. `clear_route_cache` in the decision makes Envoy choose
again here, now with the cluster header set.
"""

from __future__ import annotations

from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    RuntimeFractionalPercent,
)
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    RateLimit,
    RateLimitAction,
    RateLimitActionRemoteAddress,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.common.ratelimit.v3 import (
    LocalRateLimitDescriptor,
    RateLimitDescriptorEntry,
)
from envoy_data_plane.envoy.extensions.filters.http.buffer.v3 import Buffer, BufferPerRoute
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExtProcOverrides,
    ExtProcPerRoute,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit.v3 import LocalRateLimit
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import LuaPerRoute
from envoy_data_plane.envoy.type.matcher.v3 import (
    MetadataMatcher,
    MetadataMatcherPathSegment,
    StringMatcher,
    ValueMatcher,
)
from envoy_data_plane.envoy.type.v3 import FractionalPercent, Int64Range, TokenBucket

from extproc.config.away import Away, AwayRoute, away_routes, fallback
from extproc.config.model import Config, ServiceClass
from extproc.config.restart import accepts_sites
from extproc.config.routes import form_paths
from extproc.control import tries
from extproc.control.cors import CORS_FILTER, cors
from extproc.control.pack import packed
from extproc.control.tries import RetryTiming
from extproc.core import contract
from extproc.core.routes import FORM_PATHS

#: json_to_metadata holds a whole JSON answer back to read its counts; an answer above this ends as 500.
#: Streams are not held back, and requests have their own, smaller bound (the buffer filter's).
JSON_ANSWER_BYTES_MAX = 64 * 1024 * 1024

#: Client addresses whose floors are kept apart.
FLOOR_SOURCES_MAX = 10_000
FLOOR_FILTER = "envoy.filters.http.local_ratelimit"

DECIDED_ROUTE = "decided"
WHOLE_SUFFIX = ".whole"
ONCE_SUFFIX = ".once"
UNDECIDED_ROUTE = "undecided"
FORM_SUFFIX, KEPT_SUFFIX = ".form", ".form.kept"
#: The filters that forms are exempt from, or that see little of them.
DECISION_FILTER = "envoy.filters.http.ext_proc"
BUFFER_FILTER = "envoy.filters.http.buffer"
#: Keeps a form whole after the decision, so that Envoy can send it again. On no other route.
KEEPING_FILTER = "steersman.keeping"
LUA_FILTER = "envoy.filters.http.lua"
#: The answer is another route's by then, and with it the script that looks at answers.
CHOOSES_ANEW = "function envoy_on_request(handle) handle:clearRouteCache() end"
#: What was decided by its head is whole by then. The filter that keeps it was shown the head twice (Envoy
#: 1.40: by ext_proc, and by the chain that goes on) and has said so much too long a length.
CHOOSES_KEPT = f"""
function envoy_on_request(handle)
  local body, headers = handle:body(), handle:headers()
  if body then headers:replace("content-length", tostring(body:length())) end
  headers:remove("{contract.ONCE_HEADER}")
  handle:clearRouteCache()
end
"""
HEAD_MODE = ProcessingMode(
    request_header_mode=ProcessingModeHeaderSendMode.SEND,
    request_body_mode=ProcessingModeBodySendMode.BUFFERED_PARTIAL,
    request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
    response_header_mode=ProcessingModeHeaderSendMode.SKIP,
    response_body_mode=ProcessingModeBodySendMode.NONE,
    response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
)
NOWHERE = "nowhere"


def route_configuration(config: Config) -> RouteConfiguration:
    """One virtual host for every name."""
    host = VirtualHost(
        name="steersman",
        domains=["*"],
        routes=[*_decided(config), *_known(config), *_undecided(config)],
        request_body_buffer_limit=buffer_limit_bytes(config),
        typed_per_filter_config={CORS_FILTER: packed(cors(config.gateway.cors))}
        if config.gateway.cors
        else {},
    )
    # The cluster header names a cluster at run time, so there is nothing to validate at load time.
    return RouteConfiguration(name="steersman", virtual_hosts=[host], validate_clusters=False)


def buffer_limit_bytes(config: Config) -> int:
    """What Envoy may buffer of a stream, either way, once its request has gone on.

    For a JSON answer and for the body that is kept for retries. A route only raises the limit; until the
    router meets it the listener's holds, and from the buffer filter on that filter's own.
    """
    gateway = config.gateway
    return max(JSON_ANSWER_BYTES_MAX, gateway.body_bytes_max, gateway.upload_kept_bytes_max)


def _decided(config: Config) -> list[Route]:
    """One for each class with settings of its own, then one for the rest."""
    own = [
        each
        for each in config.classes
        if (each.retries, each.first_byte_timeout_ms, each.stream_idle_timeout_ms) != (None, None, None)
    ]
    present = HeaderMatcher(name=contract.CLUSTER_HEADER, present_match=True)
    kinds = [
        *(
            (f"{DECIDED_ROUTE}.{each.name}", _of_class(each), RetryTiming.of(config.gateway, each))
            for each in own
        ),
        (DECIDED_ROUTE, present, RetryTiming.of(config.gateway)),
    ]
    # What cannot be sent again first, then what comes whole, of each: the rest are streams.
    return [
        _decided_route(config, name + again + suffix, match, timing, whole=whole, once=once)
        for name, match, timing in kinds
        for again, once in ((ONCE_SUFFIX, True), ("", False))
        for suffix, whole in ((WHOLE_SUFFIX, True), ("", False))
    ]


def _of_class(service_class: ServiceClass) -> HeaderMatcher:
    suffix = contract.CLASS_SEPARATOR + service_class.name
    return HeaderMatcher(name=contract.CLUSTER_HEADER, string_match=StringMatcher(suffix=suffix))


def _decided_route(
    config: Config, name: str, match: HeaderMatcher, timing: RetryTiming, *, whole: bool, once: bool
) -> Route:
    """`once`: the service has decided by a form's head.

    Envoy (1.40) keeps what is sent for another try, and then sends the kept head on once more, before the
    rest: so there must be no retry policy at all.
    """
    # By a header that the decision sets for pools with a prefix; without it the path stays as it is.
    path = f"%REQ({contract.PATH_PREFIX_HEADER})%%PATH(NQ)%"
    action = RouteAction(cluster_header=contract.CLUSTER_HEADER, path_rewrite=path, auto_host_rewrite=True)
    marks = [name for name, said in ((contract.ONCE_HEADER, once), (contract.WHOLE_HEADER, whole)) if said]
    action = tries.whole(timing, action) if whole else tries.streamed(timing, action)
    if once:
        action.retry_policy = None
    return Route(
        name=name,
        match=RouteMatch(
            prefix="/", headers=[match, *(HeaderMatcher(name=mark, present_match=True) for mark in marks)]
        ),
        route=action,
        request_headers_to_remove=_ours(config),
        response_headers_to_add=_decided_headers(config),
    )


def _ours(config: Config) -> list[str]:
    """What no engine is to see."""
    names = [contract.CLUSTER_HEADER, contract.EXPLAIN_HEADER, "x-envoy-internal", contract.ENCODING_HEADER]
    names += [contract.WHOLE_HEADER, contract.ONCE_HEADER]
    if peer_address_header(config):
        names.append(contract.PEER_ADDRESS_HEADER)
    if config.gateway.trusted_proxy is not None:
        names.append(config.gateway.trusted_proxy.header)
    if peer_headers(config):
        names += [contract.PEER_URI_HEADER, contract.PEER_DNS_HEADER]
    return names


def peer_address_header(config: Config) -> bool:
    """Whether a connection's own address must be said beside the client's."""
    return config.gateway.trusted_proxy is not None and config.gateway.client_address is not None


def peer_headers(config: Config) -> bool:
    """Whether routes are chosen by the names in client certificates."""
    return any(route.proof in ("uri", "dns") for route in away_routes(config))


def _known(config: Config) -> list[Route]:
    """The tenants that Envoy itself knows, where the service's absence means something else for them."""
    return [
        route
        for each in away_routes(config)
        for route in _both(config, f"away.{each.tenant}.{each.proof}", each.away, each)
    ]


def _undecided(config: Config) -> list[Route]:
    return _both(config, UNDECIDED_ROUTE, fallback(config))


def _both(config: Config, name: str, away: Away, known: AwayRoute | None = None) -> list[Route]:
    """Those for forms first, then the one for everything else; `known`: of one tenant alone.

    Of a form the service gets the head: what came before the listener's buffer was full. It is not held
    until it is whole, and its declared length is what the service bounds it by. What there is of it goes on
    with the decision, before ext_proc would have the route chosen anew: so the script after it does that.
    """

    def matched() -> RouteMatch:
        return RouteMatch(prefix="/") if known is None else _proven(config, known)

    found = []
    kept = config.gateway.upload_kept_bytes_max
    for path in (*FORM_PATHS, *form_paths(config.routes)):
        for keeps in (True, False) if kept else (False,):
            match = matched()
            match.prefix, match.path = None, path
            if keeps:
                small = Int64Range(start=0, end=kept + 1)
                match.headers = [*match.headers, HeaderMatcher(name="content-length", range_match=small)]
            found.append(_form(config, name, match, away, keeps=keeps))
    return [*found, _away(config, name, matched(), away)]


def _form(config: Config, name: str, match: RouteMatch, away: Away, *, keeps: bool) -> Route:
    """One path of forms: those that are kept whole for another try, or those of which each piece goes on."""
    route = _away(config, name + (KEPT_SUFFIX if keeps else FORM_SUFFIX), match, away)
    if route.route is not None and not keeps:
        route.route.retry_policy = None  # as where it is decided, by its head
    script = CHOOSES_KEPT if keeps else CHOOSES_ANEW
    route.typed_per_filter_config = {
        **route.typed_per_filter_config,
        DECISION_FILTER: packed(ExtProcPerRoute(overrides=ExtProcOverrides(processing_mode=HEAD_MODE))),
        BUFFER_FILTER: packed(BufferPerRoute(disabled=True)),
        LUA_FILTER: packed(LuaPerRoute(source_code=DataSource(inline_string=script))),
    }
    if keeps:
        whole = Buffer(max_request_bytes=config.gateway.upload_kept_bytes_max)
        route.typed_per_filter_config[KEEPING_FILTER] = packed(BufferPerRoute(buffer=whole))
    return route


def _proven(config: Config, known: AwayRoute) -> RouteMatch:
    gateway = config.gateway
    if known.proof == "jwt":
        assert gateway.jwt is not None
        # The filter writes it after the signature was verified, and has the route chosen anew.
        path = [contract.JWT_PAYLOAD_KEY, gateway.jwt.claim]
        matcher = MetadataMatcher(
            filter=contract.JWT_NAMESPACE,
            path=[MetadataMatcherPathSegment(key=key) for key in path],
            value=ValueMatcher(string_match=StringMatcher(exact=known.value)),
        )
        return RouteMatch(prefix="/", dynamic_metadata=[matcher])
    names = {"uri": contract.PEER_URI_HEADER, "dns": contract.PEER_DNS_HEADER}
    if known.proof == "proxy":
        assert gateway.trusted_proxy is not None
        names["proxy"] = gateway.trusted_proxy.header
    header = HeaderMatcher(name=names[known.proof], string_match=StringMatcher(exact=known.value))
    return RouteMatch(prefix="/", headers=[header])


def _away(config: Config, name: str, match: RouteMatch, away: Away) -> Route:
    route = Route(name=name, match=match)
    if away.pool is None and config.gateway.cors is not None:
        # The same 503, by a cluster that is not there: the filter for web pages passes direct answers over.
        route.route = RouteAction(cluster=NOWHERE)
        return route
    if away.pool is None:
        route.direct_response = DirectResponseAction(status=503, body=DataSource(inline_string="no decision"))
        return route
    service_class = next(each for each in config.classes if each.name == away.service_class)
    cluster = contract.away_cluster_name(away.pool, away.service_class)
    action = RouteAction(cluster=cluster, auto_host_rewrite=True)
    if prefix := next(pool.upstream.path_prefix for pool in config.pools if pool.name == away.pool):
        action.path_rewrite = f"{prefix}%PATH(NQ)%"
    route.route = tries.streamed(RetryTiming.of(config.gateway, service_class), action)
    # As with a decision: what proves a tenant to us is not the engine's to see.
    secret = ["authorization", "x-api-key"]
    if accepts_sites(config):
        secret.append(contract.SITE_HEADER)
    route.request_headers_to_remove = [*_ours(config), *secret]
    if away.floor is not None:
        route.typed_per_filter_config = {FLOOR_FILTER: packed(floor(away.floor))}
    return route


def floor(per_second: int) -> LocalRateLimit:
    """So many requests a second for each client address, and that many at once.

    Counted for all of Envoy's threads together. Addresses above FLOOR_SOURCES_MAX push out the one that
    was quiet for longest.
    """
    bucket = TokenBucket(
        max_tokens=per_second, tokens_per_fill=per_second, fill_interval=timedelta(seconds=1)
    )
    everything = RuntimeFractionalPercent(default_value=FractionalPercent(numerator=100))
    return LocalRateLimit(
        stat_prefix="floor",
        # The bucket of requests without an address; there are none, but Envoy wants one.
        token_bucket=bucket,
        filter_enabled=everything,
        filter_enforced=everything,
        rate_limits=[RateLimit(actions=[RateLimitAction(remote_address=RateLimitActionRemoteAddress())])],
        # An entry without a value stands for each one that comes.
        descriptors=[
            LocalRateLimitDescriptor(
                entries=[RateLimitDescriptorEntry(key="remote_address")], token_bucket=bucket
            )
        ],
        max_dynamic_descriptors=FLOOR_SOURCES_MAX,
        always_consume_default_token_bucket=False,
    )


def has_floor(config: Config) -> bool:
    """Whether any route has one."""
    return any(away.floor is not None for away in (fallback(config), *(r.away for r in away_routes(config))))


def _decided_headers(config: Config) -> list[HeaderValueOption]:
    """What clients are told of the decision; a header without a value is left out by Envoy."""

    def decided(key: str) -> str:
        return f"%DYNAMIC_METADATA({contract.DECISION_NAMESPACE}:{key})%"

    values = {name: decided(name) for name in (*contract.RATE_LIMIT_HEADERS, *contract.FAMILY_HEADERS)}
    if any(pool.spill is not None or pool.remote is not None for pool in config.pools):
        values[contract.SPILLED_HEADER] = decided(contract.SPILLED_HEADER)
    values[contract.REASON_HEADER] = decided(contract.EXPLAINED_KEY)
    # For the Lua filter, which takes it away: after a retry the answer is another's than the first named.
    values[contract.SERVED_HEADER] = "%UPSTREAM_REMOTE_ADDRESS%"
    if config.gateway.debug_headers:
        values |= {
            "x-steersman-pool": decided(contract.POOL_KEY),
            contract.REASON_HEADER: decided(contract.REASON_KEY),
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
