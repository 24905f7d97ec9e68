"""Reading Envoy's dumps, those of other makers' configurations included: by type, never by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import load
from extproc.control.filters import http_filters
from extproc.control.routes import FLOOR_FILTER
from extproc.doctor import dump

ROOT = Path(__file__).parents[2]
TYPES = "type.googleapis.com/envoy"


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"{TYPES}.extensions.filters.http.{kind}", **fields}


def ext_proc(*spaces: str) -> dict[str, Any]:
    options = {"receiving_namespaces": {"untyped": list(spaces)}} if spaces else {}
    return typed(dump.EXT_PROC, metadata_options=options, grpc_service={"envoy_grpc": {"cluster_name": "c"}})


def dynamic(*filters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A dump with one listener that an xDS server told, its routes by RDS: as Istio's are."""
    manager = {
        "@type": f"{TYPES}.extensions.filters.network.{dump.HCM}",
        "rds": {"route_config_name": "http.80"},
        "http_filters": [{"name": f"f{i}", "typed_config": each} for i, each in enumerate(filters)],
        **fields,
    }
    chain = {"filters": [{"name": "anything", "typed_config": manager}]}
    listener = {
        "name": "0.0.0.0_80",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}},
        "default_filter_chain": chain,
    }
    routes = {"name": "http.80", "virtual_hosts": [{"routes": [{"name": "r"}]}, {"routes": [{"name": "s"}]}]}
    return {
        "configs": [
            {
                "@type": f"{TYPES}.admin.v3.ListenersConfigDump",
                "dynamic_listeners": [
                    {"name": "x", "active_state": {"listener": listener}},
                    {"name": "warming"},
                ],
            },
            {
                "@type": f"{TYPES}.admin.v3.RoutesConfigDump",
                "dynamic_route_configs": [
                    {"route_config": routes},
                    {
                        "route_config": {
                            "name": "other",
                            "virtual_hosts": [{"routes": [{"name": "not this"}]}],
                        }
                    },
                ],
            },
        ]
    }


def test_the_order_of_filters_is_the_one_that_is_rendered() -> None:
    """Every filter of a configuration that has them all; not floors, nor what is off but for forms."""
    config = load(ROOT / "envoy/examples/tenants.yaml")
    rendered = [each for each in http_filters(config) if each.name != FLOOR_FILTER and not each.disabled]
    kinds = [each.typed_config.type_url for each in rendered if each.typed_config is not None]
    assert [kind.partition(".filters.http.")[2] or kind.rpartition(".common.")[2] for kind in kinds] == list(
        dump.ORDER
    )


def test_a_told_listener_with_its_told_routes_is_read() -> None:
    """Default filter chains and RDS included; a listener that still warms is none yet."""
    told = dynamic(ext_proc("steersman"), typed(dump.ROUTER))
    (manager,) = dump.managers(told)
    assert manager.listener == "0.0.0.0_80"
    assert [route["name"] for route in dump.routes(told, manager)] == ["r", "s"]
    assert dump.listens(told) == ["0.0.0.0:80"]


def test_ours_is_the_filter_that_takes_our_metadata() -> None:
    """Beside another project's; alone, any is; a disabled one is none."""
    other, ours = ext_proc("other"), ext_proc("envoy.lb", "steersman")
    (manager,) = dump.managers(dynamic(other, ours))
    assert manager.decision == ours
    (alone,) = dump.managers(dynamic(other))
    assert alone.decision == other
    (none,) = dump.managers(dynamic(typed(dump.ROUTER)))
    assert none.decision is None


def test_headers_are_removed_by_name_beginning_or_match() -> None:
    """In small letters, from every extension."""
    mutations = [
        {"remove": "X-A"},
        {"remove_on_match": {"key_matcher": {"prefix": "X-Envoy-"}}},
        {"remove_on_match": {"key_matcher": {"exact": "x-b"}}},
        {"append": {"header": {"key": "x-c"}}},
    ]
    extensions = [{"typed_config": {"mutations": mutations}}]
    (manager,) = dump.managers(dynamic(ext_proc(), early_header_mutation_extensions=extensions))
    assert manager.removed_headers == ({"x-a", "x-b"}, ("x-envoy-",))


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ({"socket_address": {"address": "10.0.0.1", "port_value": 80}}, "10.0.0.1:80"),
        ({"socket_address": {"address": "::1", "port_value": 80}}, "[::1]:80"),
        ({"pipe": {"path": "/run/s.sock"}}, "unix:/run/s.sock"),
        ({"envoy_internal_address": {"server_listener_name": "x"}}, ""),
    ],
)
def test_addresses_are_spelt_as_in_the_file(address: dict[str, Any], text: str) -> None:
    """IPv6 in brackets, sockets as unix:, others not at all."""
    assert dump.address_of(address) == text


def test_hosts_have_envoys_words_against_them() -> None:
    """Healthy ones none."""
    socket = {"socket_address": {"address": "10.0.0.1", "port_value": 80}}
    pages = {
        "cluster_statuses": [
            {
                "name": "c",
                "host_statuses": [
                    {"address": socket, "health_status": {"eds_health_status": "HEALTHY"}},
                    {
                        "address": socket,
                        "health_status": {"failed_outlier_check": True, "eds_health_status": "DRAINING"},
                    },
                ],
            }
        ]
    }
    assert [host.troubles for host in dump.hosts(pages)["c"]] == [(), ("outlier check", "told as draining")]


@pytest.mark.parametrize(("text", "seconds"), [("0.250s", 0.25), ("0s", 0.0), (None, 0.0), ("soon", 0.0)])
def test_durations(text: str | None, seconds: float) -> None:
    """What is no duration is none."""
    assert dump.seconds(text) == seconds
