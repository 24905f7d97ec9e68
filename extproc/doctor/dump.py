"""Envoy's config_dump and /clusters, read for what the checks want to know.

Owns where things stand in the dumps; whoever wrote that configuration (we, Istio, a person), the type URLs
are what things are known by, never names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from extproc.addresses import joined
from extproc.core import contract

#: The last parts of type URLs.
EXT_PROC: Final = "ext_proc.v3.ExternalProcessor"
BUFFER: Final = "buffer.v3.Buffer"
JWT: Final = "jwt_authn.v3.JwtAuthentication"
JSON_COUNTS: Final = "json_to_metadata.v3.JsonToMetadata"
LUA: Final = "lua.v3.Lua"
ROUTER: Final = "router.v3.Router"
#: A filter that some requests pass by, its own type within: here the one that asks who it is.
MATCHED: Final = "matching.v3.ExtensionWithMatcher"
HCM: Final = "http_connection_manager.v3.HttpConnectionManager"
GRPC_LOG: Final = "access_loggers.grpc.v3.HttpGrpcAccessLogConfig"
OVERRIDE_HOST: Final = "override_host.v3.OverrideHost"
SUBSET: Final = "subset.v3.Subset"
PREVIOUS_HOSTS: Final = "previous_hosts.v3.PreviousHostsPredicate"

#: The filters in the order in which a request must meet them; those that are there.
ORDER: Final = (JWT, MATCHED, BUFFER, EXT_PROC, JSON_COUNTS, LUA, ROUTER)

Json = Mapping[str, Any]


def is_a(message: Json, kind: str) -> bool:
    """Whether a packed message is of a type."""
    return str(message.get("@type", "")).endswith(f".{kind}")


def short(kind: str) -> str:
    """`envoy.filters.http.ext_proc`-like names are long; people say `ext_proc`."""
    return kind.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Manager:
    """One HTTP connection manager, of one filter chain of a listener."""

    listener: str
    body: Json

    @property
    def filters(self) -> list[Json]:
        """The HTTP filters' settings, in order, those that are switched off left out."""
        return [
            each.get("typed_config", {})
            for each in self.body.get("http_filters", [])
            if not each.get("disabled", False)
        ]

    def first(self, kind: str) -> Json | None:
        """The first filter of a type."""
        return next((each for each in self.filters if is_a(each, kind)), None)

    @property
    def decision(self) -> Json | None:
        """Our ext_proc filter: the one that takes the decision's metadata, else the only one."""
        found = [each for each in self.filters if is_a(each, EXT_PROC)]
        ours = [each for each in found if contract.DECISION_NAMESPACE in taken(each)]
        return next(iter(ours or found), None)

    @property
    def access_logs(self) -> list[Json]:
        """Settings of the gRPC access logs."""
        return [
            log["typed_config"]
            for log in self.body.get("access_log", [])
            if is_a(log.get("typed_config", {}), GRPC_LOG)
        ]

    @property
    def removed_headers(self) -> tuple[set[str], tuple[str, ...]]:
        """Header names, and beginnings of names, that are removed before anything looks at a request."""
        names: set[str] = set()
        prefixes: list[str] = []
        for extension in self.body.get("early_header_mutation_extensions", []):
            for mutation in extension.get("typed_config", {}).get("mutations", []):
                if "remove" in mutation:
                    names.add(str(mutation["remove"]).lower())
                matcher = mutation.get("remove_on_match", {}).get("key_matcher", {})
                if "prefix" in matcher:
                    prefixes.append(str(matcher["prefix"]).lower())
                if "exact" in matcher:
                    names.add(str(matcher["exact"]).lower())
        return names, tuple(prefixes)


def taken(decision: Json) -> list[str]:
    """The metadata namespaces that an ext_proc filter takes from its service."""
    spaces = decision.get("metadata_options", {}).get("receiving_namespaces", {}).get("untyped", [])
    return [str(each) for each in spaces]


def cluster_of(grpc_service: Json) -> str:
    """The cluster that a gRPC service is called by; "" for one that is none."""
    return str(grpc_service.get("envoy_grpc", {}).get("cluster_name", ""))


def _sections(dump: Json, kind: str) -> Iterator[Json]:
    for each in dump.get("configs", []):
        if str(each.get("@type", "")).endswith(f".{kind}"):
            yield each


def managers(dump: Json) -> list[Manager]:
    """Every HTTP connection manager, those with an ext_proc filter first."""
    found: list[Manager] = []
    for section in _sections(dump, "ListenersConfigDump"):
        listeners = [each.get("listener", {}) for each in section.get("static_listeners", [])]
        listeners += [
            each.get("active_state", {}).get("listener", {}) for each in section.get("dynamic_listeners", [])
        ]
        for listener in listeners:
            chains = [*listener.get("filter_chains", []), listener.get("default_filter_chain") or {}]
            for chain in chains:
                found += [
                    Manager(str(listener.get("name", "")), each["typed_config"])
                    for each in chain.get("filters", [])
                    if is_a(each.get("typed_config", {}), HCM)
                ]
    return sorted(found, key=lambda manager: manager.decision is None)


def listens(dump: Json) -> list[str]:
    """Where the listeners listen, `ip:port`."""
    listeners: list[Json] = []
    for section in _sections(dump, "ListenersConfigDump"):
        listeners += [each.get("listener", {}) for each in section.get("static_listeners", [])]
        listeners += [
            each.get("active_state", {}).get("listener", {}) for each in section.get("dynamic_listeners", [])
        ]
    found = [address_of(each.get("address", {})) for each in listeners]
    return [each for each in found if each]


def admin_address(dump: Json) -> str:
    """Where Envoy's admin port listens; "" where the dump does not say."""
    for section in _sections(dump, "BootstrapConfigDump"):
        return address_of(section.get("bootstrap", {}).get("admin", {}).get("address", {}))
    return ""


def routes(dump: Json, manager: Manager) -> list[Json]:
    """The routes that a manager uses: its own, or those of its RDS name."""
    own = manager.body.get("route_config")
    name = manager.body.get("rds", {}).get("route_config_name")
    found: list[Json] = [own] if own else []
    for section in _sections(dump, "RoutesConfigDump"):
        for each in section.get("dynamic_route_configs", []):
            config = each.get("route_config", {})
            if config.get("name") == name:
                found.append(config)
    return [
        route
        for config in found
        for host in config.get("virtual_hosts", [])
        for route in host.get("routes", [])
    ]


def clusters(dump: Json) -> dict[str, Json]:
    """Every cluster's settings by its name."""
    found: dict[str, Json] = {}
    for section in _sections(dump, "ClustersConfigDump"):
        for kind in ("static_clusters", "dynamic_active_clusters"):
            for each in section.get(kind, []):
                cluster = each.get("cluster", {})
                found[str(cluster.get("name", ""))] = cluster
    return found


def addresses(cluster: Json) -> list[str]:
    """The endpoints that a cluster is given with; those told later (EDS) are not here."""
    return [
        address_of(endpoint.get("endpoint", {}).get("address", {}))
        for locality in cluster.get("load_assignment", {}).get("endpoints", [])
        for endpoint in locality.get("lb_endpoints", [])
    ]


def address_of(address: Json) -> str:
    """`ip:port`, `unix:/path`, or "" for another kind."""
    if "pipe" in address:
        return f"unix:{address['pipe'].get('path', '')}"
    socket = address.get("socket_address")
    if not socket:
        return ""
    host = str(socket.get("address", ""))
    return joined(host, socket.get("port_value", 0))


@dataclass(frozen=True, slots=True)
class Host:
    """One endpoint of a cluster as Envoy sees it now."""

    address: str
    #: What is against it, in Envoy's words; empty for a healthy one.
    troubles: tuple[str, ...]


def hosts(pages: Json) -> dict[str, list[Host]]:
    """Cluster → its endpoints with Envoy's judgement, from `/clusters?format=json`."""
    found: dict[str, list[Host]] = {}
    for cluster in pages.get("cluster_statuses", []):
        found[str(cluster.get("name", ""))] = [
            Host(address_of(host.get("address", {})), _troubles(host.get("health_status", {})))
            for host in cluster.get("host_statuses", [])
        ]
    return found


def _troubles(health: Json) -> tuple[str, ...]:
    words = [
        name.removeprefix("failed_").replace("_", " ") for name, value in health.items() if value is True
    ]
    eds = health.get("eds_health_status", "HEALTHY")
    return (*words, *([] if eds in ("HEALTHY", "UNKNOWN") else [f"told as {eds.lower()}"]))


def has_lb_policy(cluster: Json, kind: str) -> Json | None:
    """A cluster's load-balancing policy of a type."""
    for each in cluster.get("load_balancing_policy", {}).get("policies", []):
        typed = each.get("typed_extension_config", {}).get("typed_config", {})
        if is_a(typed, kind):
            found: Json = typed
            return found
    return None


def has_nobody_to_give(override: Json) -> bool:
    """Whether what stands behind an override_host's list has no endpoint either."""
    found = has_lb_policy({"load_balancing_policy": override.get("fallback_policy", {})}, SUBSET)
    fallback = None if found is None else found.get("fallback_policy", "NO_FALLBACK")
    return found is not None and fallback == "NO_FALLBACK" and not found.get("subset_selectors")


def seconds(duration: Any) -> float:
    """Envoy's `0.250s`; nought for none."""
    text = str(duration or "0s").removesuffix("s")
    try:
        return float(text)
    except ValueError:
        return 0.0


def names_in(items: Sequence[Any]) -> set[str]:
    """A list of names, in small letters."""
    return {str(each).lower() for each in items}
