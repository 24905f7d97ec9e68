"""A gateway that asks Steersman by the endpoint-picker protocol: envoy/picker/envoy.yaml on free ports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from gateway import Gateway

EXAMPLE = Path(__file__).parents[2] / "envoy" / "picker" / "envoy.yaml"


class PickerGateway(Gateway):
    """The example's Envoy before pools of addresses; `change` has the last word on its configuration."""

    def __init__(
        self,
        pools: dict[str, dict[str, Any]],
        *,
        picker: dict[str, Any] | None = None,
        upstreams: list[str] | None = None,
        change: Callable[[PickerGateway, dict[str, Any]], None] | None = None,
        **sections: Any,
    ) -> None:
        self.change = change
        listed = [a["address"] if isinstance(a, dict) else a for p in pools.values() for a in p["addresses"]]
        #: What Envoy may send to, whatever the service knows.
        self.upstreams = upstreams or listed
        super().__init__(pools, picker={"enabled": True, **(picker or {})}, **sections)

    def bootstrap(self) -> str:
        """The example with this test's ports."""
        config: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
        listener(config)["address"]["socket_address"]["port_value"] = self.port
        config["admin"]["address"]["socket_address"]["port_value"] = self.admin_port
        models, service = config["static_resources"]["clusters"]
        _endpoints(models, self.upstreams)
        _endpoints(service, [self.service_address])
        if self.change is not None:
            self.change(self, config)
        return yaml.safe_dump(config)

    @property
    def counts(self) -> dict[str, int]:
        """The service's counters."""
        counts: dict[str, int] = self.status()["counts"]
        return counts


def listener(config: dict[str, Any]) -> dict[str, Any]:
    """The one listener."""
    found: dict[str, Any] = config["static_resources"]["listeners"][0]
    return found


def connections(config: dict[str, Any]) -> dict[str, Any]:
    """The connection manager's own configuration."""
    found: dict[str, Any] = listener(config)["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def asks(config: dict[str, Any]) -> dict[str, Any]:
    """The ext_proc filter's configuration."""
    (found,) = (f["typed_config"] for f in connections(config)["http_filters"] if "ext_proc" in f["name"])
    return found  # type: ignore[no-any-return]


def models_cluster(config: dict[str, Any]) -> dict[str, Any]:
    """The model servers' cluster."""
    found: dict[str, Any] = config["static_resources"]["clusters"][0]
    return found


def _endpoints(cluster: dict[str, Any], addresses: list[str]) -> None:
    cluster["load_assignment"]["endpoints"] = [
        {
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
                for host, _, port in (address.rpartition(":") for address in addresses)
            ]
        }
    ]
