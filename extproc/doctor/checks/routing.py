"""Checks of Envoy's routes and clusters: does the decision hold, and do retries help?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from extproc.core import contract
from extproc.doctor import dump
from extproc.doctor.checks.envoy import RENDER, envoy_of, manager_of, without_envoy, without_manager
from extproc.doctor.evidence import Evidence
from extproc.doctor.finding import Check, Said, error, warning

#: What must be tried on another endpoint: a replica that refuses says 429 or 503.
RETRIED_STATUS: Final = {429, 503}


def _decided(evidence: Evidence) -> list[dump.Json]:
    return [
        route
        for route in dump.routes(envoy_of(evidence).config_dump, manager_of(evidence))
        if route.get("route", {}).get("cluster_header", "").lower() == contract.CLUSTER_HEADER
    ]


def _of_uploads(route: dump.Json) -> bool:
    """Whether a route is of requests whose body passes while they are decided."""
    return any(each.get("name") == contract.ONCE_HEADER for each in route.get("match", {}).get("headers", ()))


def route(evidence: Evidence) -> Iterator[Said]:
    """A route that goes where the decision says."""
    if not _decided(evidence):
        yield error(
            f"no route takes its cluster from the header {contract.CLUSTER_HEADER}: decisions are made and "
            "ignored",
            f"add a route with cluster_header: {contract.CLUSTER_HEADER}; {RENDER}",
        )


def retries(evidence: Evidence) -> Iterator[Said]:
    """A refused request is tried on the next endpoint, not on the same one."""
    if evidence.config.gateway.retries == 0:
        return
    for each in _decided(evidence):
        if _of_uploads(each):
            continue  # no try but the first has their whole body
        name = each.get("name", "(without a name)")
        policy = each["route"].get("retry_policy")
        if not policy or not int(policy.get("num_retries", 1)):
            yield warning(
                f"route {name} has no retry_policy: a replica's refusal goes to the client",
                "add one with retriable_status_codes 429, 502, 503, 504: " + RENDER,
            )
            continue
        if not set(policy.get("retriable_status_codes", [])) >= RETRIED_STATUS:
            yield warning(
                f"route {name} does not retry 429 and 503",
                "add them to retriable_status_codes, and retriable-status-codes to retry_on",
            )
        predicates = [one.get("typed_config", {}) for one in policy.get("retry_host_predicate", [])]
        if not any(dump.is_a(one, dump.PREVIOUS_HOSTS) for one in predicates):
            yield warning(
                f"route {name} may retry on the same replica",
                "add retry_host_predicate: envoy.retry_host_predicates.previous_hosts",
            )


def timeouts(evidence: Evidence) -> Iterator[Said]:
    """A stream may run for as long as it is not silent."""
    for each in _decided(evidence):
        timeout = each["route"].get("timeout", "15s")
        if dump.seconds(timeout) > 0:
            yield error(
                f"route {each.get('name', '')} ends every answer after {timeout}",
                "set its timeout: 0s, and bound silence with idle_timeout",
            )


def pools(evidence: Evidence) -> Iterator[Said]:
    """A cluster for each pool and class, whose endpoint is the decision's."""
    clusters = dump.clusters(envoy_of(evidence).config_dump)
    for pool in evidence.config.pools:
        for each in evidence.config.classes:
            name = contract.cluster_name(pool.name, each.name)
            cluster = clusters.get(name)
            if cluster is None:
                yield error(
                    f"Envoy has no cluster {name}: requests for pool {pool.name} end as 503",
                    "start Envoy with this file's bootstrap; with --mode ads see whether it has a stream "
                    "to the "
                    "service (check service.ads)",
                )
                continue
            policy = dump.has_lb_policy(cluster, dump.OVERRIDE_HOST)
            if policy is None:
                yield error(
                    f"cluster {name} does not balance by override_host: the chosen endpoint is ignored",
                    "give it load_balancing_policy envoy.load_balancing_policies.override_host: " + RENDER,
                )
                continue
            if not dump.has_nobody_to_give(policy):
                yield error(
                    f"cluster {name} goes on to any endpoint when a list is used up: out of tenants' "
                    "regions, above permits",
                    f"give override_host the subset balancer as its fallback: {RENDER}",
                )
            sources = policy.get("override_host_sources", [])
            if any("header" in source for source in sources):
                yield error(
                    f"cluster {name} takes the endpoint from a header, which a client may send",
                    "take it from metadata alone (override_host_sources: metadata)",
                )
            elif not any(
                source.get("metadata", {}).get("key") == contract.LB_NAMESPACE for source in sources
            ):
                yield error(
                    f"cluster {name} does not read the endpoint from metadata {contract.LB_NAMESPACE}",
                    f"set override_host_sources: metadata key {contract.LB_NAMESPACE}, path "
                    f"{contract.LB_ENDPOINTS_KEY}",
                )


def endpoints(evidence: Evidence) -> Iterator[Said]:
    """The endpoints of the file are those that Envoy was started with."""
    clusters = dump.clusters(envoy_of(evidence).config_dump)
    for pool in evidence.config.pools:
        name = contract.cluster_name(pool.name, evidence.config.classes[0].name)
        cluster = clusters.get(name, {})
        if cluster.get("type", "STATIC") != "STATIC" or not cluster:
            continue
        given, wanted = set(dump.addresses(cluster)), {each.address for each in pool.endpoints}
        if missing := sorted(wanted - given):
            yield error(
                f"Envoy does not know {', '.join(missing[:3])} of pool {pool.name}: it would ignore such a "
                "choice",
                f"{RENDER}; or render with --mode ads, where endpoints follow the file",
            )


def healthy(evidence: Evidence) -> Iterator[Said]:
    """What Envoy itself thinks of the service and the replicas."""
    name = dump.cluster_of((manager_of(evidence).decision or {}).get("grpc_service", {}))
    found = dump.hosts(envoy_of(evidence).clusters)
    service = found.get(name, [])
    away = [each for each in service if each.troubles]
    if service and len(away) == len(service):
        yield error(
            f"Envoy finds no healthy service behind ext_proc: {_told(away)}",
            "start the service (steersman serve), and see that service.listen is what gateway.services says",
        )
    elif away:
        yield warning(
            f"Envoy finds a service unwell: {_told(away)}", "start it, or take it out of gateway.services"
        )
    for pool in evidence.config.pools:
        # The same endpoints stand in a cluster for each class; the worst of those counts once.
        per_class = [
            found.get(contract.cluster_name(pool.name, each.name), []) for each in evidence.config.classes
        ]
        unwell = {host.address: host for hosts in per_class for host in hosts if host.troubles}
        everyone = {host.address for hosts in per_class for host in hosts}
        if everyone and len(unwell) == len(everyone):
            yield error(
                f"Envoy finds no healthy replica of pool {pool.name}: {_told(list(unwell.values()))}",
                "start the engines, or correct their addresses",
            )
        elif unwell:
            yield warning(
                f"Envoy has set aside replicas of pool {pool.name}: {_told(list(unwell.values()))}",
                "look at those engines (steersman fleet); Envoy takes them back by itself",
            )


def _told(hosts: list[dump.Host]) -> str:
    shown = ", ".join(f"{each.address} ({', '.join(each.troubles)})" for each in hosts[:4])
    return shown + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")


CHECKS: Final = (
    Check(id="envoy.route", about="a route follows the decision", look=route, missing=without_manager),
    Check(
        id="envoy.retries",
        about="refusals are retried on another replica",
        look=retries,
        missing=without_manager,
    ),
    Check(
        id="envoy.timeouts",
        about="streams are not cut by a total timeout",
        look=timeouts,
        missing=without_manager,
    ),
    Check(
        id="envoy.pools",
        about="every pool has clusters that obey the decision",
        look=pools,
        missing=without_envoy,
    ),
    Check(
        id="envoy.endpoints", about="Envoy knows the file's endpoints", look=endpoints, missing=without_envoy
    ),
    Check(
        id="envoy.health",
        about="Envoy finds the service and replicas healthy",
        look=healthy,
        missing=without_manager,
    ),
)
