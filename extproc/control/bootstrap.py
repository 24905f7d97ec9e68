"""The whole configuration of an Envoy, from a `Config`.

Owns the bootstrap's frame: node, admin, overload. Output is deterministic, for golden files.
"""

from __future__ import annotations

import json
from typing import Any

import yaml
from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapDynamicResources,
    BootstrapStaticResources,
)
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.config.overload.v3 import (
    OverloadAction,
    OverloadManager,
    ResourceMonitor,
    ThresholdTrigger,
    Trigger,
)
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.envoy.extensions.resource_monitors.fixed_heap.v3 import FixedHeapConfig

from extproc.config.model import Config
from extproc.control.listener import listener
from extproc.control.pack import address, ms, packed
from extproc.control.resources import Mode, from_ads, pool_clusters
from extproc.control.services import (
    ads_clusters,
    ads_source,
    service_cluster,
    service_log_clusters,
    tracing_cluster,
)
from extproc.control.upstreams import static_secrets

#: Heap beside buffered bodies.
HEAP_BASE_BYTES = 1024 * 1024 * 1024
#: A body is held once for the decision and once for retries.
BODY_COPIES = 2
#: The share of the heap bound at which Envoy gives memory back, and at which it refuses requests.
HEAP_SHRINK_AT = 0.90
HEAP_REFUSE_AT = 0.97
HEAP_MONITOR = "envoy.resource_monitors.fixed_heap"

#: libyaml where PyYAML was built with it: five times as fast.
_FAST_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

HEADER = "# Rendered by `steersman envoy-config`. Do not edit: change steersman.yaml and render again.\n"


def render_bootstrap(config: Config, mode: Mode = "static") -> Bootstrap:
    """Everything that an Envoy needs to serve a configuration.

    `static` has nothing fetched at run time. In `ads` the pools and their endpoints are the service's to
    tell; without it Envoy goes on with what it was told last.
    """
    clusters = [service_cluster(config), *service_log_clusters(config)]
    clusters += pool_clusters(config) if mode == "static" else ads_clusters(config)
    if config.gateway.tracing:
        clusters.append(tracing_cluster(config.gateway.tracing))
    bootstrap = Bootstrap(
        node=Node(id="steersman-gateway", cluster="steersman"),
        admin=Admin(address=address(config.gateway.envoy_admin)),
        static_resources=BootstrapStaticResources(
            listeners=[listener(config)],
            clusters=clusters,
            secrets=static_secrets(config) if mode == "static" else [],
        ),
        overload_manager=_overload_manager(config),
    )
    if mode == "ads":
        bootstrap.dynamic_resources = BootstrapDynamicResources(
            ads_config=ads_source(config), cds_config=from_ads()
        )
    return bootstrap


def to_yaml(bootstrap: Bootstrap) -> str:
    """As YAML that Envoy reads; equal bootstraps give equal text."""
    return HEADER + yaml.dump(_tree(bootstrap), Dumper=_Dumper, sort_keys=False, width=110)


def to_json(bootstrap: Bootstrap) -> str:
    """As JSON that Envoy reads."""
    return json.dumps(_tree(bootstrap), indent=2) + "\n"


def _tree(bootstrap: Bootstrap) -> dict[str, object]:
    # `str` keeps each field's own name: betterproto's snake case makes consecutive_5_xx of consecutive_5xx.
    tree: dict[str, object] = bootstrap.to_dict(casing=str)  # type: ignore[arg-type]  # any callable will do
    return tree


class _Dumper(_FAST_DUMPER):  # type: ignore[misc]  # which of two, is known when it runs
    """Block style for texts of several lines, and no anchors."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  (PyYAML's signature)
        return True


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _overload_manager(config: Config) -> OverloadManager:
    bodies = BODY_COPIES * config.limits.decisions_concurrent_max * config.gateway.body_bytes_max
    return OverloadManager(
        refresh_interval=ms(250),
        resource_monitors=[
            ResourceMonitor(
                name="envoy.resource_monitors.global_downstream_max_connections",
                typed_config=packed(
                    DownstreamConnectionsConfig(
                        max_active_downstream_connections=config.gateway.connections_max
                    )
                ),
            ),
            ResourceMonitor(
                name=HEAP_MONITOR,
                typed_config=packed(FixedHeapConfig(max_heap_size_bytes=HEAP_BASE_BYTES + bodies)),
            ),
        ],
        actions=[
            _at(HEAP_SHRINK_AT, "envoy.overload_actions.shrink_heap"),
            _at(HEAP_REFUSE_AT, "envoy.overload_actions.stop_accepting_requests"),
        ],
    )


def _at(share: float, action: str) -> OverloadAction:
    trigger = Trigger(name=HEAP_MONITOR, threshold=ThresholdTrigger(value=share))
    return OverloadAction(name=action, triggers=[trigger])
