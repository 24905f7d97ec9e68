"""Envoy's share, part by part: the configuration as shipped, beside the same without one part of it.

Each configuration has an Envoy of its own with one thread; all ask the same service and the same engines. A
block of requests through the shipped one and a block through the other alternate. What the part costs is the
median of the differences; beside it half the distance between the quartiles, by which to judge it. `python
tests/bench/bench_filters.py [--rounds N] [PART …]` prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "e2e")]

import uvloop
from bench_gateway import KINDS, Kind
from gateway import Child, envoy_binary, free_ports, listens, wait_for
from load import Load
from processes import stop_all
from rows import Row, cpu_ns, percentile
from variants import Variant, engines, steersman

ROUNDS = 20
#: Requests of a block, and how many at once.
BLOCK, CONNECTIONS = 40, 4
SHIPPED = "shipped"

Tree = dict[str, Any]


def _manager(tree: Tree) -> Tree:
    found: Tree = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def _routes(tree: Tree) -> list[Tree]:
    found: list[Tree] = _manager(tree)["route_config"]["virtual_hosts"][0]["routes"]
    return found


def _without_filter(*names: str) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        filters = _manager(tree)["http_filters"]
        kept = [each for each in filters if each["name"] not in names]
        assert len(kept) == len(filters) - len(names), f"not rendered: {names}"
        filters[:] = kept

    return change


def _no_decision(tree: Tree) -> None:
    """Straight to the pool; what hangs on a decision (record, event) goes with it."""
    _without_filter("envoy.filters.http.ext_proc", "steersman.identity")(tree)
    cluster = next(each for each in tree["static_resources"]["clusters"] if each["name"] != "steersman")
    cluster["load_balancing_policy"] = {
        "policies": [
            {
                "typed_extension_config": {
                    "name": "envoy.load_balancing_policies.least_request",
                    "typed_config": {
                        "@type": "type.googleapis.com/"
                        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest"
                    },
                }
            }
        ]
    }
    route = _routes(tree)[-2]
    route["match"] = {"prefix": "/"}
    route["route"].pop("cluster_header")
    route["route"]["cluster"] = cluster["name"]
    _routes(tree)[:] = [route]


def _without_event(tree: Tree) -> None:
    lua = next(each for each in _manager(tree)["http_filters"] if each["name"] == "envoy.filters.http.lua")
    source = lua["typed_config"]["default_source_code"]
    call = "tell(handle, refused)\n"
    assert source["inline_string"].count(f"  {call}") == 1, (
        "the script has changed: say here what the call is"
    )
    source["inline_string"] = source["inline_string"].replace(f"  {call}", "\n")


def _record(tree: Tree) -> Tree:
    (log,) = _manager(tree)["access_log"]
    found: Tree = log["typed_config"]
    return found


def _records_in_batches(tree: Tree) -> None:
    _record(tree)["common_config"]["buffer_size_bytes"] = 16384


def _dropped(where: Callable[[Tree], Tree], *keys: str) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        for key in keys:
            del where(tree)[key]

    return change


def _router(tree: Tree) -> Tree:
    found: Tree = _manager(tree)["http_filters"][-1]["typed_config"]
    return found


def _decision(tree: Tree) -> Tree:
    found: Tree = next(
        each for each in _manager(tree)["http_filters"] if each["name"] == "envoy.filters.http.ext_proc"
    )["typed_config"]
    return found


def _of_each_route(key: str, *, action: bool = False) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        taken = 0
        for route in _routes(tree):
            taken += (route.get("route", {}) if action else route).pop(key, None) is not None
        assert taken, f"not rendered: {key}"

    return change


def _no_outliers(tree: Tree) -> None:
    for cluster in tree["static_resources"]["clusters"]:
        cluster.pop("outlier_detection", None)


def _no_request_id(tree: Tree) -> None:
    _manager(tree)["generate_request_id"] = False
    del _manager(tree)["always_set_request_id_in_response"]


#: What is taken out, by its name in the table.
PARTS: dict[str, Callable[[Tree], None]] = {
    SHIPPED: lambda _: None,
    # Twice, so that the run shows what a difference of nothing looks like.
    "nothing (what noise looks like)": lambda _: None,
    "decision: ext_proc, record, event": _no_decision,
    "identity filter (skipped for small bodies)": _without_filter("steersman.identity"),
    "buffer": _without_filter("envoy.filters.http.buffer"),
    "json_to_metadata": _without_filter("envoy.filters.http.json_to_metadata"),
    "Lua: first chunk, events, errors": _without_filter("envoy.filters.http.lua"),
    "first-token event alone": _without_event,
    "access log": _dropped(_manager, "access_log"),
    "access log: a flush for each record": _records_in_batches,
    "access log: response headers": _dropped(_record, "additional_response_headers_to_log"),
    "response headers from metadata": _of_each_route("response_headers_to_add"),
    "upstream header mutation": _dropped(_router, "upstream_http_filters"),
    "early header mutation": _dropped(_manager, "early_header_mutation_extensions"),
    "source.address attribute": _dropped(_decision, "request_attributes"),
    "retry policy": _of_each_route("retry_policy", action=True),
    "outlier detection": _no_outliers,
    "request id": _no_request_id,
    "path normalisation": _dropped(
        _manager, "normalize_path", "merge_slashes", "path_with_escaped_slashes_action"
    ),
    "local replies": _dropped(_manager, "local_reply_config"),
}


@dataclass
class Cost:
    """A part's cost in microseconds a request, a figure a round."""

    envoy: list[float] = field(default_factory=list)
    service: list[float] = field(default_factory=list)

    def add(self, figures: Sequence[float]) -> None:
        """One more: Envoy's and the service's."""
        self.envoy.append(figures[0])
        self.service.append(figures[1])

    def told(self, of: str) -> tuple[float, float]:
        """The median, and half the distance between the quartiles."""
        values = getattr(self, of)
        return percentile(values, 0.5), (percentile(values, 0.75) - percentile(values, 0.25)) / 2


@contextlib.contextmanager
def _envoys(ours: Variant, names: Sequence[str]) -> Iterator[dict[str, tuple[int, int]]]:
    """An Envoy for each part: its port and its pid."""
    assert ours.gateway is not None
    folder = ours.gateway.folder
    shipped = json.loads((folder / "envoy.yaml").read_text())
    children, found = [], {}
    try:
        for at, name in enumerate(names):
            port, admin_port = free_ports(2)
            tree = copy.deepcopy(shipped)
            tree["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = port
            tree["admin"]["address"]["socket_address"]["port_value"] = admin_port
            PARTS[name](tree)
            file = folder / f"part{at}.json"
            file.write_text(json.dumps(tree))
            options = ["--disable-hot-restart", "--concurrency", "1", "-l", "error"]
            child = Child(f"part{at}", [envoy_binary(), "-c", str(file), *options], folder)
            child.start()
            children.append(child)
            wait_for(name, lambda port=port: listens(port))
            found[name] = port, child.pid
        yield found
    finally:
        stop_all(children)


async def _costs(
    ours: Variant, envoys: dict[str, tuple[int, int]], kind: Kind, rounds: int
) -> dict[str, Cost]:
    request, service_pid = kind.request(), ours.service_pid
    assert service_pid is not None
    loads = {name: Load(port) for name, (port, _) in envoys.items()}
    for load in loads.values():
        await load.some(request, 40, CONNECTIONS)  # warm

    async def spent_us(name: str) -> tuple[float, float]:
        pids = envoys[name][1], service_pid
        before = [cpu_ns(pid) for pid in pids]
        await loads[name].some(request, BLOCK, CONNECTIONS)
        await asyncio.sleep(0.03)  # the record
        envoy, service = ((cpu_ns(pid) - was) / BLOCK / 1e3 for pid, was in zip(pids, before, strict=True))
        return envoy, service

    costs = {name: Cost() for name in envoys}
    for each in range(rounds):
        for name in [name for name in envoys if name != SHIPPED]:
            # Side by side, and not first each time: what the machine does meanwhile hits both.
            order = (SHIPPED, name) if each % 2 else (name, SHIPPED)
            spent = {of: await spent_us(of) for of in order}
            costs[SHIPPED].add(spent[SHIPPED])
            costs[name].add(tuple(a - b for a, b in zip(spent[SHIPPED], spent[name], strict=True)))
    failed = {name: load.failed + load.refused for name, load in loads.items()}
    for load in loads.values():
        load.close()
    assert not any(failed.values()), f"requests that were not served: {failed}"
    return costs


def measure(names: Sequence[str], rounds: int) -> dict[str, dict[str, Cost]]:
    """The costs of these parts, for each kind of request."""

    with tempfile.TemporaryDirectory(prefix="steersman-bench-") as folder, engines(Path(folder)) as addresses:
        with steersman("shipped", addresses) as ours, _envoys(ours, names) as envoys:
            return {
                kind.name: uvloop.run(_costs(ours, envoys, kind, rounds))
                for kind in KINDS
                if kind.prompt_bytes < 10_000
            }


def run() -> Iterator[Row]:
    """Yield Envoy's and the service's microseconds of each part."""
    for kind, costs in measure(list(PARTS), ROUNDS).items():
        for name, cost in costs.items():
            for whose in ("envoy", "service"):
                median, spread = cost.told(whose)
                yield Row(f"{kind}: {name}, {whose} (±{spread:.0f})", median, "µs")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    found = measure(list(dict.fromkeys([SHIPPED, *(arguments.parts or PARTS)])), arguments.rounds)
    print(
        f"µs of CPU per request{'':22}"
        + "".join(f"{kind + ', ' + w:>28}" for kind in found for w in ("Envoy", "service"))
    )
    for name in next(iter(found.values())):
        cells = []
        for costs in found.values():
            for whose in ("envoy", "service"):
                median, spread = costs[name].told(whose)
                cells.append(f"{median:20.0f} ±{spread:4.0f}  ")
        print(f"{name:43}" + "".join(cells), flush=True)


if __name__ == "__main__":
    _main()
