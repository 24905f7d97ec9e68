"""What can be wrong in Envoy's bootstrap and in the file, each as a function that makes it so."""

from __future__ import annotations

from typing import Any

from gateway import free_ports


def manager(bootstrap: dict[str, Any]) -> dict[str, Any]:
    """The connection manager."""
    listener = bootstrap["static_resources"]["listeners"][0]
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def cluster(bootstrap: dict[str, Any], name: str) -> dict[str, Any]:
    """A cluster."""
    clusters = bootstrap["static_resources"]["clusters"]
    return next(each for each in clusters if each["name"] == name)


def ext_proc(bootstrap: dict[str, Any]) -> dict[str, Any]:
    """The filter that asks for decisions."""
    filters = manager(bootstrap)["http_filters"]
    return next(each["typed_config"] for each in filters if each["name"].endswith("ext_proc"))


def misordered(bootstrap: dict[str, Any]) -> None:
    filters = manager(bootstrap)["http_filters"]
    names = [each["name"].rpartition(".")[2] for each in filters]
    filters.insert(names.index("json_to_metadata"), filters.pop(names.index("lua")))


def unlogged(bootstrap: dict[str, Any]) -> None:
    del manager(bootstrap)["access_log"]


def without_metadata(bootstrap: dict[str, Any]) -> None:
    ext_proc(bootstrap)["metadata_options"]["receiving_namespaces"]["untyped"].remove("envoy.lb")


def elsewhere(bootstrap: dict[str, Any]) -> None:
    endpoint = cluster(bootstrap, "steersman")["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    endpoint["endpoint"]["address"]["socket_address"]["port_value"] = free_ports(1)[0]


def exposed(bootstrap: dict[str, Any]) -> None:
    bootstrap["admin"]["address"]["socket_address"]["address"] = "0.0.0.0"


def trusting(bootstrap: dict[str, Any]) -> None:
    del manager(bootstrap)["early_header_mutation_extensions"]


def disobedient(bootstrap: dict[str, Any]) -> None:
    chosen = cluster(bootstrap, "pool.chat/standard")["load_balancing_policy"]
    config = chosen["policies"][0]["typed_extension_config"]["typed_config"]
    cluster(bootstrap, "pool.chat/standard")["load_balancing_policy"] = config["fallback_policy"]


def undecided(bootstrap: dict[str, Any]) -> None:
    host = manager(bootstrap)["route_config"]["virtual_hosts"][0]
    host["routes"] = [each for each in host["routes"] if not each["name"].startswith("decided")]


def unretried(bootstrap: dict[str, Any]) -> None:
    for route in manager(bootstrap)["route_config"]["virtual_hosts"][0]["routes"]:
        route.get("route", {}).pop("retry_policy", None)


def responding(bootstrap: dict[str, Any]) -> None:
    ext_proc(bootstrap)["processing_mode"]["response_header_mode"] = "SEND"


def bodiless(bootstrap: dict[str, Any]) -> None:
    ext_proc(bootstrap)["processing_mode"]["request_body_mode"] = "NONE"


def expired(config: dict[str, Any]) -> None:
    config["tenants"][0]["keys"][0]["expires"] = "2026-01-31T00:00:00Z"


def misnamed(config: dict[str, Any]) -> None:
    config["pools"][0]["models"] = ["llama-70b"]


def greedy(config: dict[str, Any]) -> None:
    config["pools"][0]["endpoints"][0]["max_concurrent"] = 500


def dead(config: dict[str, Any]) -> None:
    config["pools"][0]["endpoints"][1]["address"] = f"127.0.0.1:{free_ports(1)[0]}"


def other_engine(config: dict[str, Any]) -> None:
    config["pools"][0]["engine"] = "vllm"


def no_folder(config: dict[str, Any]) -> None:
    config["audit"] = {"file": "/nowhere/at/all/audit.jsonl"}
