"""The HTTP filters, in the order in which a request meets them (a response meets them backwards).

Owns the decision's call and what Envoy itself observes of responses: token counts and the time of
the first chunk. The service never sees a response; it is told once that the first chunk came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources

from betterproto2 import Message
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRules
from envoy_data_plane.envoy.config.core.v3 import DataSource
from envoy_data_plane.envoy.config.route.v3 import RouteMatch
from envoy_data_plane.envoy.extensions.filters.http.buffer.v3 import Buffer
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors as CorsFilter
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutation as HeaderMutationFilter,
)
from envoy_data_plane.envoy.extensions.filters.http.json_to_metadata.v3 import (
    JsonToMetadata,
    JsonToMetadataKeyValuePair,
    JsonToMetadataMatchRules,
    JsonToMetadataRule,
    JsonToMetadataSelector,
    JsonToMetadataValueType,
)
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import (
    JwtAuthentication,
    JwtHeader,
    JwtProvider,
    JwtRequirement,
    JwtRequirementOrList,
    RequirementRule,
)
from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit.v3 import LocalRateLimit
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import UpstreamCodec
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.google.protobuf import Empty

from extproc.config.away import away_routes, fallback
from extproc.config.holds import longest_hold_ms
from extproc.config.model import Config, Jwt
from extproc.config.own_routes import own_routes
from extproc.control.cors import CORS_FILTER
from extproc.control.identity import IDENTITY_FILTER, asks_first
from extproc.control.pack import ms, packed
from extproc.control.routes import (
    BUFFER_FILTER,
    DECISION_FILTER,
    FLOOR_FILTER,
    KEEPING_FILTER,
    LUA_FILTER,
    has_floor,
)
from extproc.control.services import decision_service
from extproc.control.upstreams import answer_mutations
from extproc.core import contract
from extproc.core.routes import Counts, counts, ends
from extproc.core.spill.values import FAILED, GIVES_WAY

JWT_PROVIDER = "tenants"

#: So much of what an engine says of an error inside a 200 rides to the service.
ERROR_BYTES = 512
#: Of a stream whose usage was asked for in the client's name, an event up to this is held back until it is
#: whole.
HELD_BYTES = 64 * 1024
#: A first-token event that a hung service does not take is given up after this, and only then is its
#: place among the cluster's requests free again.
EVENT_TIMEOUT_MS = 250
#: The same for a whole answer that goes to the service's cache.
FILL_TIMEOUT_MS = 1_000

#: What a client reads where an engine refuses the gateway's own key: nothing that it could mend.
ENGINE_KEY_REFUSED = {
    "error": {
        "message": "the model server refuses the gateway; its operator must set its key (upstream.key)",
        "type": "server_error",
        "param": None,
        "code": "engine_key_refused",
    },
    "error_type": "engine_key_refused",
}

#: And where another site does, which has its operators and its own words in its log.
SITE_REFUSED = {
    "error": {
        "message": "the other site does not take this request: keys, clocks or the lists of tenants differ;"
        " steersman doctor at this site and the log at that one say which",
        "type": "server_error",
        "param": None,
        "code": "site_refused",
    },
    "error_type": "site_refused",
}

#: Envoy compares its own list with the whole header; engines add a charset to it.
JSON_CONTENT_TYPE = r"application/json(\s*;.*)?"


def http_filters(config: Config) -> list[HttpFilter]:
    """The whole chain."""
    jwt, floors = config.gateway.jwt, has_floor(config)
    decides = decision(config)
    # Where counts stand in bodies, and what they are called in metadata. In whole answers json_to_metadata
    # reads them; in streams the script, which looks at each event anyway. sse_to_metadata would parse each.
    found = counts(own_routes(config.routes))
    return [
        # Preflights are answered here, and everything that comes back, refusals too, says who may read it.
        *([_filter(CORS_FILTER, CorsFilter())] if config.gateway.cors else []),
        # Before the body is waited for: its metadata is for the service, and for routes without it.
        *([_filter("envoy.filters.http.jwt_authn", tokens(jwt, config))] if jwt else []),
        # Strangers are answered before their bodies are read.
        _filter(IDENTITY_FILTER, asks_first(config, decides)),
        # The bound on bodies. The service is asked to decide when a body is whole, so that a slow sender
        # holds no place there; and bodies without a length get one, which some engines insist on.
        _filter(BUFFER_FILTER, Buffer(max_request_bytes=config.gateway.body_bytes_max)),
        _filter(DECISION_FILTER, decides),
        *([keeping(config)] if config.gateway.upload_kept_bytes_max else []),
        # Does nothing but on the routes of requests without a decision.
        *([_filter(FLOOR_FILTER, LocalRateLimit(stat_prefix="floor"))] if floors else []),
        # On the way back the first chunk is seen before json_to_metadata holds a JSON body back.
        _filter("envoy.filters.http.json_to_metadata", json_counts(found)),
        _filter(LUA_FILTER, first_chunk(found, caches=config.cache is not None)),
        # Attempts and upstream timings are for the access log, not for clients and engines.
        _filter("envoy.filters.http.router", router(config)),
    ]


def keeping(config: Config) -> HttpFilter:
    """Forms are kept whole here where their route says so: the service saw the head, and Envoy sends on what
    it can send again."""
    found = _filter(KEEPING_FILTER, Buffer(max_request_bytes=config.gateway.upload_kept_bytes_max))
    found.disabled = True
    return found


def router(config: Config) -> Router:
    """Sends a request on; of the answer it takes what only we may say, before anything of ours is added.

    Clusters with filters of their own do that themselves.
    """
    dropped = HeaderMutationFilter(
        mutations=answer_mutations(provider=any(pool.spill is not None for pool in config.pools))
    )
    return Router(
        suppress_envoy_headers=True,
        upstream_http_filters=[
            _filter("envoy.filters.http.header_mutation", dropped),
            # What sends a request on is the last of these.
            _filter("envoy.filters.http.upstream_codec", UpstreamCodec()),
        ],
    )


def decision(config: Config) -> ExternalProcessor:
    """Headers and buffered body go to the service; nothing of the response does (law: decide, then leave)."""
    gateway = config.gateway
    attributes = [contract.SOURCE_ATTRIBUTE]
    if gateway.tls is not None and gateway.tls.client_ca is not None:
        attributes += [*contract.SAN_ATTRIBUTES, contract.SUBJECT_ATTRIBUTE]
    return ExternalProcessor(
        grpc_service=decision_service(config),
        # Who may go on without a decision is the routes' to say.
        failure_mode_allow=goes_on_without(config),
        request_attributes=attributes,
        status_on_error=HttpStatus(code=StatusCode(503)),
        message_timeout=ms(gateway.decision_timeout_ms),
        max_message_timeout=ms(max(longest_hold_ms(config), gateway.decision_timeout_ms)),
        processing_mode=ProcessingMode(
            # SEND, though the body decides: with SKIP the router would route before the body is here.
            request_header_mode=ProcessingModeHeaderSendMode.SEND,
            request_body_mode=ProcessingModeBodySendMode.BUFFERED,
            request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
            response_header_mode=ProcessingModeHeaderSendMode.SKIP,
            response_body_mode=ProcessingModeBodySendMode.NONE,
            response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
        ),
        # Without this list the metadata of the decision would be dropped in silence.
        metadata_options=MetadataOptions(
            receiving_namespaces=MetadataOptionsMetadataNamespaces(
                untyped=[contract.LB_NAMESPACE, contract.DECISION_NAMESPACE]
            ),
            forwarding_namespaces=MetadataOptionsMetadataNamespaces(untyped=[contract.JWT_NAMESPACE])
            if gateway.jwt
            else None,
        ),
        # Cluster header, identity headers and the key's removal are allowed; host, method, path and
        # Envoy's own headers are not the decision's to change, but for how many endpoints its list holds.
        mutation_rules=HeaderMutationRules(
            allow_all_routing=False,
            allow_envoy=False,
            allow_expression=RegexMatcher(regex=contract.RETRIES_HEADER),
        ),
        stat_prefix="decision",
    )


def goes_on_without(config: Config) -> bool:
    """Whether any request is served while the service is away."""
    return any(away.pool is not None for away in (fallback(config), *(r.away for r in away_routes(config))))


def tokens(jwt: Jwt, config: Config) -> JwtAuthentication:
    """Verifies a bearer token and says what is in it, or what is wrong with it; refuses nothing itself.

    The same header carries API keys, which are no tokens, and the service counts failed attempts: so it
    has the last word on either. The header stays, so that it sees a second one, and removes it itself.
    """
    source = (
        DataSource(filename=jwt.jwks_file)
        if jwt.jwks_file is not None
        else DataSource(inline_string=jwt.jwks_inline)
    )
    by_token = any(route.proof == "jwt" for route in away_routes(config))
    provider = JwtProvider(
        issuer=jwt.issuer,
        audiences=list(jwt.audiences),
        local_jwks=source,
        forward=True,
        require_expiration=True,
        # Named, since Envoy's default also takes a token from the query, which logs keep.
        from_headers=[JwtHeader(name="Authorization", value_prefix="Bearer ")],
        payload_in_metadata=contract.JWT_PAYLOAD_KEY,
        failed_status_in_metadata=contract.JWT_FAILURE_KEY,
        clear_route_cache=by_token,
    )
    return JwtAuthentication(
        providers={JWT_PROVIDER: provider},
        rules=[
            RequirementRule(
                match=RouteMatch(prefix="/"),
                requires=JwtRequirement(
                    requires_any=JwtRequirementOrList(
                        requirements=[
                            JwtRequirement(provider_name=JWT_PROVIDER),
                            JwtRequirement(allow_missing_or_failed=Empty()),
                        ]
                    )
                ),
            )
        ],
    )


def json_counts(found: Counts) -> JsonToMetadata:
    """Counts in whole JSON answers."""
    rules = [_rule(path, key) for path, key in found]
    return JsonToMetadata(
        response_rules=JsonToMetadataMatchRules(
            rules=rules, allow_content_types_regex=RegexMatcher(regex=JSON_CONTENT_TYPE)
        )
    )


def first_chunk(found: Counts, *, caches: bool = False) -> Lua:
    """When a response began, how many events a stream has had, its counts, what it says of an error.

    `caches`: answers are gathered where a decision asks for that; without it nothing is asked of any.
    """
    source = resources.files("extproc.control").joinpath("lua/first_chunk.lua").read_text(encoding="utf-8")
    for name, value in (
        ("COUNTS", "\n".join(_counted(found))),
        ("ENDS", ", ".join(f'["{name}"] = true' for name in ends())),
        ("INDEX_KEY", contract.INDEX_KEY),
        ("ERROR_BYTES", ERROR_BYTES),
        ("HELD_BYTES", HELD_BYTES),
        ("EVENT_TIMEOUT_MS", EVENT_TIMEOUT_MS),
        ("FILL_TIMEOUT_MS", FILL_TIMEOUT_MS),
        ("CACHES", "true" if caches else "false"),
        ("CACHE_KEY", contract.CACHE_KEY),
        ("FILL_PATH", f"/{contract.EVENT_SERVICE}/{contract.FILL_METHOD}"),
        ("OBSERVED_NAMESPACE", contract.OBSERVED_NAMESPACE),
        ("FIRST_CHUNK_KEY", contract.FIRST_CHUNK_KEY),
        ("REFUSED_KEY", contract.REFUSED_KEY),
        ("ERROR_KEY", contract.ERROR_KEY),
        ("NO_ANSWER", contract.NO_ANSWER),
        ("COMPLETION_TOKENS_KEY", contract.COMPLETION_TOKENS_KEY),
        ("KEY_REFUSED_KEY", contract.KEY_REFUSED_KEY),
        ("KEY_REFUSED_BODY", f"'{json.dumps(ENGINE_KEY_REFUSED)}'"),
        ("SITE_KEY", contract.SITE_KEY),
        ("SITE_REFUSED_BODY", f"'{json.dumps(SITE_REFUSED)}'"),
        ("EVENTS_KEY", contract.EVENTS_KEY),
        ("DONE_KEY", contract.DONE_KEY),
        ("RESPONSE_ID_KEY", contract.RESPONSE_ID_KEY),
        ("USAGE_KEY", contract.USAGE_KEY),
        ("DECISION_NAMESPACE", contract.DECISION_NAMESPACE),
        ("RESERVATION_KEY", contract.RESERVATION_KEY),
        ("EVENT_CLUSTER_KEY", contract.EVENT_CLUSTER_KEY),
        ("EVENT_PATH", f"/{contract.EVENT_SERVICE}/{contract.EVENT_METHOD}"),
        ("RESERVATION_HEADER", contract.RESERVATION_HEADER),
        ("REFUSED_HEADER", contract.REFUSED_HEADER),
        ("SERVED_HEADER", contract.SERVED_HEADER),
        ("PROVIDER_HEADER", contract.PROVIDER_HEADER),
        ("PROVIDER_KEY", contract.PROVIDER_KEY),
        ("SPILLED_HEADER", contract.SPILLED_HEADER),
        ("SPILL_FAILED", FAILED),
        ("GIVES_WAY", ", ".join(f'["{status}"] = true' for status in sorted(GIVES_WAY))),
        ("PROVIDER_SILENT", contract.PROVIDER_SILENT),
    ):
        source = source.replace(f"@{name}@", str(value))
    return Lua(default_source_code=DataSource(inline_string=source), stat_prefix="first_chunk")


def _counted(found: Counts) -> Iterator[str]:
    """What the script looks for, an object a line; what stands in none is in whole answers alone."""
    objects: dict[str, dict[tuple[str, str], None]] = {}
    for path, key in found:
        if len(path) > 1:
            objects.setdefault(path[0], {})[path[-1], key] = None
    for name, inner in objects.items():
        inside = ", ".join(f'{{ "{count}", "{key}" }}' for count, key in inner)
        yield f'  {{ of = "{name}", {inside} }},'


def _rule(path: tuple[str, ...], key: str) -> JsonToMetadataRule:
    return JsonToMetadataRule(
        selectors=[JsonToMetadataSelector(key=part) for part in path],
        on_present=JsonToMetadataKeyValuePair(
            metadata_namespace=contract.OBSERVED_NAMESPACE, key=key, type=JsonToMetadataValueType.NUMBER
        ),
    )


def _filter(name: str, message: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=packed(message))
