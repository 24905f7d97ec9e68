"""What the rendered configuration says of who connects: bounds, proxies in front, web pages, slow answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from extproc.control import identity
from extproc.core import contract
from tests.control.test_structure import POOLS, http_filter, manager, rendering, route, tree

TLS = "certificate: /c, key: /k, client_ca: /a"
TENANT = f"tenants: [{{name: a, keys: [{{sha256: {'ab' * 32}}}]}}]"


def test_an_answer_that_comes_whole_has_no_timer_of_a_try() -> None:
    """A slow one would be generated again elsewhere: the route's own timer ends it."""
    rendered = tree("first_byte_timeout_ms: 7000, stream_idle_timeout_ms: 60000, retries: 2")
    whole = route(rendered, "decided.whole")
    assert [each["name"] for each in whole["match"]["headers"]] == [
        contract.CLUSTER_HEADER,
        contract.WHOLE_HEADER,
    ]
    assert whole["route"]["idle_timeout"] == "7s"
    assert not [key for key in whole["route"]["retry_policy"] if key.startswith("per_try")]
    assert whole["route"]["retry_policy"]["num_retries"] == 2
    names = [each["name"] for each in manager(rendered)["route_config"]["virtual_hosts"][0]["routes"]]
    assert names.index("decided.whole") < names.index("decided")
    assert contract.WHOLE_HEADER in whole["request_headers_to_remove"]


def test_connections_have_bounds() -> None:
    """How many, how long without a request, and how long a request may take to arrive."""
    rendered = tree("connections_max: 77, connection_idle_timeout_s: 33, upload_timeout_ms: 4000")
    monitors = rendered["overload_manager"]["resource_monitors"]
    found = [each for each in monitors if each["name"].endswith("global_downstream_max_connections")]
    assert int(found[0]["typed_config"]["max_active_downstream_connections"]) == 77
    assert manager(rendered)["common_http_protocol_options"]["idle_timeout"] == "33s"
    assert manager(rendered)["request_timeout"] == "4s"


@pytest.mark.parametrize("bound", [0, 7, 10, 99, 100, 16384, 65536, 90909, 1048576])
def test_a_bound_as_an_expression(bound: int) -> None:
    """It fits the numbers up to the bound, and no others."""
    fits = re.compile(identity.up_to(bound))
    around = {
        *range(200),
        *(10**n + d for n in range(8) for d in (-1, 0, 1)),
        *range(bound - 300, bound + 300),
    }
    for number in (each for each in around if each >= 0):
        assert bool(fits.fullmatch(str(number))) is (number <= bound), number
    assert not fits.fullmatch("")


@pytest.mark.parametrize(
    ("gateway", "proofs"),
    [
        ("auth: none", []),
        ("auth: api_key", ["authorization", "x-api-key"]),
        (
            "auth: api_key, trusted_proxy: {networks: [10.0.0.0/8]}",
            ["authorization", "x-api-key", "x-forwarded-tenant"],
        ),
        (
            f"auth: api_key, tls: {{{TLS}}}",
            ["authorization", "x-api-key", "uri_san", "dns_san"],
        ),
        (
            "auth: api_key, tls: {certificate: /c, key: /k, client_ca: /a, require_client_certificate: true}",
            [],
        ),
    ],
)
def test_a_small_body_is_waited_for_where_something_may_prove_a_tenant(
    gateway: str, proofs: list[str]
) -> None:
    """Where nothing could, its size alone counts."""
    text = f"gateway: {{{gateway}}}\n{POOLS}\n{TENANT}"
    filter_ = http_filter(rendering(text, "static"), identity.IDENTITY_FILTER)
    predicate = filter_["xds_matcher"]["matcher_list"]["matchers"][0]["predicate"]
    small, *rest = predicate["and_matcher"]["predicate"] if proofs else [predicate]
    assert small["single_predicate"]["input"]["typed_config"]["header_name"] == "content-length"
    inputs = [
        each["single_predicate"]["input"] for found in rest for each in found["or_matcher"]["predicate"]
    ]
    assert [each["typed_config"].get("header_name", each["name"]) for each in inputs] == proofs


def test_proxies_have_chains_by_what_is_believed_of_them() -> None:
    """Of a network inside two others both are believed; with the PROXY protocol only its speakers connect."""

    def chains(client: str) -> tuple[dict[str, Any], dict[str, tuple[list[str], int]]]:
        both = f"trusted_proxy: {{networks: [10.0.0.0/8]}}, client_address: {{{client}}}"
        text = f"gateway: {{{both}}}\n{POOLS}\n{TENANT}"
        (listener,) = rendering(text, "static")["static_resources"]["listeners"]
        found = {}
        for chain in listener["filter_chains"]:
            ranges = chain.get("filter_chain_match", {}).get("direct_source_prefix_ranges", [])
            hops = chain["filters"][0]["typed_config"].get("xff_num_trusted_hops", 0)
            found[chain.get("name", "")] = ([each["address_prefix"] for each in ranges], hops)
        return listener, found

    listener, found = chains("networks: [10.1.0.0/16, 192.168.0.0/16], hops: 2")
    assert found == {
        "trusted-proxy": (["10.0.0.0"], 0),
        "trusted-proxy-forwarded": (["10.1.0.0"], 2),
        "forwarded": (["192.168.0.0"], 2),
        "": ([], 0),
    }
    assert "listener_filters" not in listener
    early = listener["filter_chains"][0]["filters"][0]["typed_config"]["early_header_mutation_extensions"][0]
    said = [
        each["append"]["header"]["key"] for each in early["typed_config"]["mutations"] if "append" in each
    ]
    assert said == [contract.PEER_ADDRESS_HEADER]
    listener, found = chains("networks: [10.1.0.0/16, 192.168.0.0/16], source: proxy_protocol")
    assert found == {"trusted-proxy": (["10.1.0.0"], 0), "proxied": (["192.168.0.0"], 0)}
    assert [each["name"] for each in listener["listener_filters"]] == [
        "envoy.filters.listener.proxy_protocol"
    ]


def test_web_pages_are_answered_first() -> None:
    """The filter is the first, and no route answers directly: Envoy's filter would pass it over."""
    rendered = tree(
        'cors: {origins: ["https://app.example"], headers: [authorization, x-mine], max_age_s: 9}'
    )
    assert manager(rendered)["http_filters"][0]["name"] == "envoy.filters.http.cors"
    host = manager(rendered)["route_config"]["virtual_hosts"][0]
    assert not [each for each in host["routes"] if "direct_response" in each]
    policy = host["typed_per_filter_config"]["envoy.filters.http.cors"]
    assert policy["allow_origin_string_match"] == [{"exact": "https://app.example"}]
    assert (policy["allow_headers"], policy["max_age"]) == ("authorization, x-mine", "9")
    assert "allow_credentials" not in policy
