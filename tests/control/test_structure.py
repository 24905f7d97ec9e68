"""What the rendered configuration must say, whatever else changes in it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from extproc.config.load import loads
from extproc.control import filters, identity, replies, routes
from extproc.control.bootstrap import render_bootstrap, to_json
from extproc.control.resources import Mode, load_assignment, pool_cluster, pool_clusters
from extproc.core import contract
from extproc.core.request import Dialect
from extproc.core.routes import counts

POOLS = """
pools:
  - name: chat
    models: [m]
    endpoints:
      - {address: 127.0.0.1:8001, zone: a}
      - {address: 127.0.0.1:8002, zone: b}
      - {address: "[::1]:8003", zone: a}
    circuit_breakers: {max_requests: 7}
"""


ADS = "{listen: ['127.0.0.1:1'], ads_listen: ['127.0.0.1:2'], token_env: ADS_TOKEN}"


def test_pools_may_be_told_at_an_address_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy asks there, with the token and over the same TLS, and as soon leaves one that is unwell.

    Decisions go where they went. In mode static nobody is asked.
    """
    monkeypatch.setenv("ADS_TOKEN", "a-token-of-this-test")
    text = f"gateway: {{auth: none, service_tls: {{ca: /ca, server_name: s}}}}\nservice: {ADS}\n{POOLS}"
    rendered = json.loads(to_json(render_bootstrap(loads(text), "ads")))
    clusters = {each["name"]: each for each in rendered["static_resources"]["clusters"]}
    assert set(clusters) == {"steersman", "steersman.ads"}
    deciding, telling = clusters["steersman"], clusters["steersman.ads"]
    ports = [
        each["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        for each in (deciding, telling)
    ]
    assert [each["port_value"] for each in ports] == [1, 2]
    for same in ("transport_socket", "health_checks", "typed_extension_protocol_options"):
        assert deciding[same] == telling[same], same
    [source] = rendered["dynamic_resources"]["ads_config"]["grpc_services"]
    assert source["envoy_grpc"]["cluster_name"] == "steersman.ads"
    assert source["initial_metadata"][0]["value"] == "Bearer a-token-of-this-test"
    assert decides(rendered)["grpc_service"]["envoy_grpc"]["cluster_name"] == "steersman"
    static = json.loads(to_json(render_bootstrap(loads(text), "static")))
    assert "steersman.ads" not in {each["name"] for each in static["static_resources"]["clusters"]}


def tree(gateway: str = "", service: str = "{}") -> dict[str, Any]:
    """What a gateway section (flow style, without its braces) is rendered to."""
    text = f"gateway: {{auth: none, {gateway}}}\nservice: {service}\n{POOLS}"
    return rendering(text, "static")


def rendering(text: str, mode: Mode) -> dict[str, Any]:
    """A tree of one's own of what is rendered once."""
    tree: dict[str, Any] = json.loads(_rendered(text, mode))
    return tree


@cache
def _rendered(text: str, mode: Mode) -> str:
    return to_json(render_bootstrap(loads(text), mode))


def manager(rendered: dict[str, Any]) -> Any:
    chain = rendered["static_resources"]["listeners"][0]["filter_chains"][0]
    return chain["filters"][0]["typed_config"]


def http_filter(rendered: dict[str, Any], name: str) -> Any:
    return next(each["typed_config"] for each in manager(rendered)["http_filters"] if each["name"] == name)


def decides(rendered: dict[str, Any]) -> Any:
    return http_filter(rendered, "envoy.filters.http.ext_proc")


def asks(rendered: dict[str, Any]) -> Any:
    return http_filter(rendered, identity.IDENTITY_FILTER)["extension_config"]["typed_config"]


def route(rendered: dict[str, Any], name: str) -> Any:
    routes_ = manager(rendered)["route_config"]["virtual_hosts"][0]["routes"]
    return next(each for each in routes_ if each["name"] == name)


def cluster(rendered: dict[str, Any], name: str) -> Any:
    return next(each for each in rendered["static_resources"]["clusters"] if each["name"] == name)


def test_every_header_of_the_contract_is_stripped_first() -> None:
    """Law 7: nothing that a client sends is trusted for identity or routing."""
    (extension,) = manager(tree())["early_header_mutation_extensions"]
    removed = {mutation.get("remove") for mutation in extension["typed_config"]["mutations"]}
    assert {*contract.STRIPPED_HEADERS, "x-request-id"} <= removed


def test_filters_stand_in_the_order_that_the_response_needs() -> None:
    """Backwards: usage is read before it is taken out, and a JSON body is timed before it is held back."""
    names = [each["name"].rpartition(".")[2] for each in manager(tree())["http_filters"]]
    assert names == ["identity", "buffer", "ext_proc", "keeping", "json_to_metadata", "lua", "router"]


def test_no_response_byte_goes_to_the_service() -> None:
    """Law 2: decide, then leave."""
    decision = decides(tree())
    mode = decision["processing_mode"]
    assert mode["request_header_mode"] == "SEND"
    assert mode["request_body_mode"] == "BUFFERED"
    assert mode["response_header_mode"] == "SKIP"
    assert "response_body_mode" not in mode, "NONE is the default and is left out"
    assert decision["metadata_options"]["receiving_namespaces"]["untyped"] == ["envoy.lb", "steersman"]


def test_the_endpoint_is_taken_from_metadata_alone() -> None:
    """A header source would let a client choose its host."""
    (policy,) = cluster(tree(), "pool.chat/standard")["load_balancing_policy"]["policies"]
    sources = policy["typed_extension_config"]["typed_config"]["override_host_sources"]
    assert sources == [
        {"metadata": {"key": contract.LB_NAMESPACE, "path": [{"key": contract.LB_ENDPOINTS_KEY}]}}
    ]


def test_what_ads_tells_is_not_in_the_bootstrap() -> None:
    """The rest is the same: one listener, the services, the collector."""
    config = loads(f"gateway: {{auth: none, tracing: {{otlp_grpc: '10.0.0.9:4317'}}}}\n{POOLS}")
    static, dynamic = (json.loads(to_json(render_bootstrap(config, mode))) for mode in ("static", "ads"))
    resources = dynamic.pop("dynamic_resources")
    source = resources["ads_config"]
    assert source["set_node_on_first_message_only"] is True
    assert source["transport_api_version"] == "V3"
    (service,) = source["grpc_services"]
    assert service["envoy_grpc"]["cluster_name"] == "steersman"
    back_off = service["envoy_grpc"]["retry_policy"]["retry_back_off"]
    assert back_off == {"base_interval": "0.100s", "max_interval": "1s"}, "Envoy's own would be 30 s"
    assert resources["cds_config"]["initial_fetch_timeout"] == "5s"
    pools = [each for each in static["static_resources"]["clusters"] if each["name"].startswith("pool.")]
    for pool in pools:
        static["static_resources"]["clusters"].remove(pool)
    assert pools
    assert static == dynamic


def test_endpoints_are_grouped_by_zone() -> None:
    """Zones in the order in which the file names them."""
    (pool,) = loads("gateway: {auth: none}\n" + POOLS).pools
    groups = load_assignment(pool, "x").endpoints
    assert [(group.locality.zone, len(group.lb_endpoints)) for group in groups if group.locality] == [
        ("a", 2),
        ("b", 1),
    ]


def test_clusters_carry_the_names_of_the_contract() -> None:
    """The decision names a cluster; a name that Envoy does not know would be 503."""
    config = loads("gateway: {auth: none}\n" + POOLS)
    assert [each.name for each in pool_clusters(config)] == [contract.cluster_name("chat", "standard")]


def test_circuit_breakers_are_the_pools() -> None:
    """What the file bounds is what Envoy bounds."""
    (threshold,) = cluster(tree(), "pool.chat/standard")["circuit_breakers"]["thresholds"]
    assert threshold["max_requests"] == 7


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("unix:/run/s.sock", {"pipe": {"path": "/run/s.sock"}}),
        ("10.0.0.1:50051", {"socket_address": {"address": "10.0.0.1", "port_value": 50051}}),
        ('"[::1]:50051"', {"socket_address": {"address": "::1", "port_value": 50051}}),
    ],
)
def test_the_service_is_found_where_it_listens(address: str, expected: dict[str, Any]) -> None:
    """Both kinds of address, and IPv6 without its brackets."""
    service = cluster(tree(service=f"{{listen: [{address}]}}"), "steersman")
    (group,) = service["load_assignment"]["endpoints"]
    assert group["lb_endpoints"][0]["endpoint"]["address"] == expected


def test_a_dead_service_is_left_within_a_second() -> None:
    """Envoy's own defaults would ask a service without traffic once a minute."""
    (check,) = cluster(tree(), "steersman")["health_checks"]
    assert check["no_traffic_interval"] == check["interval"] == check["unhealthy_interval"] == "0.500s"


def test_failure_mode_decides_what_an_undecided_request_gets() -> None:
    """Closed: 503. Open: the default model's pool."""
    closed, opened = tree(), tree("failure_mode: open")
    last = manager(closed)["route_config"]["virtual_hosts"][0]["routes"][-1]
    assert last["direct_response"]["status"] == 503
    last = manager(opened)["route_config"]["virtual_hosts"][0]["routes"][-1]
    assert last["route"]["cluster"] == "away.chat/standard"
    assert decides(opened)["failure_mode_allow"] is True
    assert asks(opened)["failure_mode_allow"] is True


@pytest.mark.parametrize(
    ("first_ms", "idle_ms", "timer", "route_s"),
    [
        # 3 tries × (first byte + 1 s margin), or the silence allowed when that is longer.
        (1000, 5000, "per_try_timeout", 6),
        (1000, 60000, "per_try_timeout", 60),
        (9000, 5000, "per_try_idle_timeout", 30),
        (5000, 5000, "per_try_idle_timeout", 18),
    ],
)
def test_one_timer_bounds_a_try(first_ms: int, idle_ms: int, timer: str, route_s: int) -> None:
    """Envoy's two do not work together, and a try must time out before the stream does."""
    rendered = tree(f"first_byte_timeout_ms: {first_ms}, stream_idle_timeout_ms: {idle_ms}, retries: 2")
    action = route(rendered, "decided")["route"]
    timers = {key: value for key, value in action["retry_policy"].items() if key.startswith("per_try")}
    assert timers == {timer: f"{first_ms // 1000}s"}
    assert action["idle_timeout"] == f"{route_s}s"
    assert action["timeout"] == "0s"


def test_the_body_bound_is_the_buffer_filters() -> None:
    """The other limits are larger: they also bound answers."""
    rendered = tree("body_bytes_max: 123456")
    assert http_filter(rendered, "envoy.filters.http.buffer")["max_request_bytes"] == 123456
    host = manager(rendered)["route_config"]["virtual_hosts"][0]
    assert int(host["request_body_buffer_limit"]) == routes.JSON_ANSWER_BYTES_MAX
    # What a stranger can make Envoy hold while who it is is asked.
    (listener,) = rendered["static_resources"]["listeners"]
    assert listener["per_connection_buffer_limit_bytes"] == 64 * 1024


def test_debug_headers_only_when_asked() -> None:
    """They tell which endpoints there are; without them a reason is told where the decision says so."""
    debug = {"x-steersman-pool", "x-steersman-endpoint", "x-steersman-attempts"}
    # The last is for the Lua filter, which takes it away.
    always = {contract.REASON_HEADER, *contract.FAMILY_HEADERS, contract.SERVED_HEADER}
    for asked, headers, key in ((False, always, "explained"), (True, always | debug, "reason")):
        route = manager(tree(f"debug_headers: {str(asked).lower()}"))["route_config"]["virtual_hosts"][0]
        added = [each["header"]["key"] for each in route["routes"][0]["response_headers_to_add"]]
        assert {name for name in added if name.startswith("x-steersman-")} == headers
        reason = route["routes"][0]["response_headers_to_add"][added.index(contract.REASON_HEADER)]
        assert reason["header"]["value"] == f"%DYNAMIC_METADATA(steersman:{key})%"
        assert [key for key in added if key.startswith("x-ratelimit-")] == list(contract.RATE_LIMIT_HEADERS)


def test_tracing_brings_its_cluster() -> None:
    """And neither is there without it."""
    assert "tracing" not in manager(tree())
    traced = tree("tracing: {otlp_grpc: '10.0.0.9:4317', sample_percent: 5}")
    assert manager(traced)["tracing"]["random_sampling"] == {"value": 5.0}
    assert cluster(traced, "otlp")["load_assignment"]["cluster_name"] == "otlp"


def test_every_reply_has_every_dialect() -> None:
    """Three mappers a row, and the last row fits every status."""
    mappers = manager(tree())["local_reply_config"]["mappers"]
    table = replies.replies(1)
    assert len(mappers) == len(Dialect) * len(table)
    assert table[-1].statuses is None


def test_lua_comes_with_the_package() -> None:
    """The text is package data, its names the contract's."""
    source = filters.first_chunk(counts()).default_source_code
    assert source is not None
    assert source.inline_string is not None
    assert contract.OBSERVED_NAMESPACE in source.inline_string
    assert contract.FIRST_CHUNK_KEY in source.inline_string
    assert "@" not in source.inline_string


def test_every_service_gets_every_record() -> None:
    """With several services each has a log stream of its own: whoever decided, all of them settle."""
    from extproc.control.accesslog import access_logs
    from extproc.control.names import log_clusters
    from extproc.control.services import service_log_clusters

    text = "gateway: {auth: none, services: [10.0.0.1:1, 10.0.0.2:1]}\n"
    config = loads(text + "pools: [{name: a, models: [m], endpoints: [{address: 10.0.0.3:1}]}]")
    assert log_clusters(config) == ["steersman.log.0", "steersman.log.1"]
    clusters = service_log_clusters(config)
    assert [cluster.name for cluster in clusters] == log_clusters(config)
    assert [
        cluster.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address
        for cluster in clusters
    ] == ["10.0.0.1", "10.0.0.2"]
    assert len(access_logs(config)) == 2


TENANTS = """
classes:
  - {name: premium, failure_mode: open, requests_per_second_floor: 9}
  - {name: batch, share_of_breakers: 0.1, retries: 0, outlier_detection: {consecutive_5xx: 9}}
tenants:
  - {name: a, class: premium, jwt_subject: s, certificate_sans: ["spiffe://x/a", a.x]}
  - {name: b, class: batch}
  - {name: c, class: premium, regions: [eu]}
"""


def tenants_tree(gateway: str = "", mode: Any = "static") -> dict[str, Any]:
    """Every proof at once."""
    proofs = (
        "jwt: {issuer: i, jwks_file: /jwks.json}, tls: {certificate: /c, key: /k, client_ca: /ca}, "
        "trusted_proxy: {networks: [10.0.0.0/8]}"
    )
    text = f"gateway: {{{proofs}, {gateway}}}\n{POOLS}{TENANTS}"
    return rendering(text, mode)


def test_a_class_is_a_cluster_of_its_own() -> None:
    """Its share of the breakers, its ejections, over the same endpoints."""
    rendered = tenants_tree()
    premium, batch = (cluster(rendered, f"pool.chat/{name}") for name in ("premium", "batch"))
    for each, connections, requests, failures in ((premium, 4096, 7, 5), (batch, 409, 1, 9)):
        (threshold,) = each["circuit_breakers"]["thresholds"]
        assert (threshold["max_connections"], threshold["max_requests"]) == (connections, requests)
        assert each["outlier_detection"]["consecutive_5xx"] == failures
    endpoints = [each["load_assignment"]["endpoints"] for each in (premium, batch)]
    assert endpoints[0] == endpoints[1]


def test_classes_share_one_assignment() -> None:
    """Endpoints are sent once a pool, however many classes see it."""
    config = loads(f"gateway: {{auth: none}}\n{POOLS}\nclasses: [{{name: premium}}, {{name: batch}}]")
    (pool,) = config.pools
    clusters = [pool_cluster(config, pool, each, mode="ads") for each in config.classes]
    names = {each.eds_cluster_config.service_name for each in clusters if each.eds_cluster_config}
    assert names == {contract.assignment_name("chat")}
    assert len({each.name for each in clusters}) == 2


def test_what_envoy_does_without_the_service() -> None:
    """Tenants that it knows by itself go by their class; regions that it could not keep are closed."""
    table = manager(tenants_tree())["route_config"]["virtual_hosts"][0]["routes"]
    served = {route["name"]: route["route"].get("cluster") for route in table if "route" in route}
    away = [name for name in served if name.startswith("away.") and ".form" not in name]
    for kind in (".form", ".form.kept"):
        assert all(served.pop(name + kind) == served[name] for name in away), "forms go as all else does"
    assert served == {
        "decided.batch.once.whole": None,
        "decided.batch.once": None,
        "decided.batch.whole": None,
        "decided.batch": None,
        "decided.once.whole": None,
        "decided.once": None,
        "decided.whole": None,
        "decided": None,
        "away.a.proxy": "away.chat/premium",
        "away.a.uri": "away.chat/premium",
        "away.a.dns": "away.chat/premium",
        "away.a.jwt": "away.chat/premium",
    }
    once = [each for each in table if ".once" in each["name"] or each["name"].endswith(".form")]
    assert not any("retry_policy" in each["route"] for each in once if "route" in each)
    batch = next(each for each in table if each["name"] == "decided.batch")
    assert batch["route"]["retry_policy"]["num_retries"] == 0
    assert table[-1]["direct_response"]["status"] == 503
    assert all("typed_per_filter_config" in route for route in table if route["name"].startswith("away."))

    def routes(gateway: str) -> list[dict[str, Any]]:
        host = manager(tenants_tree(gateway))["route_config"]["virtual_hosts"][0]
        return [route for route in host["routes"] if not route["name"].startswith("decided")]

    # By a key Envoy cannot tell the tenant of the EU from the rest, so that only who is known goes on.
    opened = routes("failure_mode: open")
    assert [each["name"] for each in opened if "direct_response" in each] == [
        "undecided.form.kept",
        "undecided.form",
        "undecided.form.kept",
        "undecided.form",
        "undecided",
    ]
    opened = routes("failure_mode: open, failure_open_outside_regions: true")
    assert [each["name"] for each in opened if "direct_response" in each] == [
        "away.c.proxy.form.kept",
        "away.c.proxy.form",
        "away.c.proxy.form.kept",
        "away.c.proxy.form",
        "away.c.proxy",
    ]
    assert opened[-1]["route"]["cluster"] == "away.chat/premium"


def test_a_proxys_header_stays_in_its_own_chain() -> None:
    """Everybody else's is removed before the route is chosen, as our own headers are."""
    (listener,) = tenants_tree()["static_resources"]["listeners"]
    trusted, other = listener["filter_chains"]
    assert trusted["filter_chain_match"] == {
        "direct_source_prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]
    }
    assert "filter_chain_match" not in other
    for chain, stripped in ((trusted, False), (other, True)):
        early = chain["filters"][0]["typed_config"]["early_header_mutation_extensions"][0]
        mutations = early["typed_config"]["mutations"]
        assert ({"remove": "x-forwarded-tenant"} in mutations) is stripped
        # What only Envoy may say is removed before it says it.
        said = [next(i for i, m in enumerate(mutations) if "append" in m)]
        assert {"remove": contract.PEER_URI_HEADER} in mutations[: said[0]]
        assert chain["transport_socket"]["name"] == "envoy.transport_sockets.tls"


def test_a_token_is_verified_but_refused_by_the_service_alone() -> None:
    """So that API keys share its header and failed attempts are counted."""
    names = [each["name"].rpartition(".")[2] for each in manager(tenants_tree())["http_filters"]]
    assert names[:6] == ["jwt_authn", "identity", "buffer", "ext_proc", "keeping", "local_ratelimit"]
    tokens = manager(tenants_tree())["http_filters"][0]["typed_config"]
    (provider,) = tokens["providers"].values()
    assert provider["from_headers"] == [{"name": "Authorization", "value_prefix": "Bearer "}]
    (rule,) = tokens["rules"]
    assert rule["requires"]["requires_any"]["requirements"][1] == {"allow_missing_or_failed": {}}
    attributes = [contract.SOURCE_ATTRIBUTE, *contract.SAN_ATTRIBUTES, contract.SUBJECT_ATTRIBUTE]
    for each in (decides(tenants_tree()), asks(tenants_tree())):
        assert each["request_attributes"] == attributes
        assert each["metadata_options"]["forwarding_namespaces"]["untyped"] == [contract.JWT_NAMESPACE]
