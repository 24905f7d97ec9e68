"""Envoy's share, part by part: what each thing that we render costs an Envoy that has nothing else.

A bare Envoy, and one for each part, with that part as we render it put in; each has one thread, all go to the
same static engines and ask the same no-op service. A block through the bare one and a block through
the other alternate. What a part costs is the median of the differences; beside it half the distance between
the quartiles. `python tests/bench/bench_filters.py [--rounds N] [PART …]` prints a table.
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
from variants import SERVICE, engines, noop, plain_bootstrap

from extproc.config.load import loads
from extproc.control.bootstrap import render_bootstrap, to_json
from extproc.core import contract

ROUNDS = 20
#: Requests of a block, and how many at once.
BLOCK, CONNECTIONS = 40, 8
BARE = "Envoy alone"
OURS = """
gateway: {auth: none, debug_headers: false}
pools: [{name: chat, models: [m], endpoints: [{address: 127.0.0.1:1}]}]
"""
_HTTP = "envoy.filters.http"

Tree = dict[str, Any]
#: Puts a part of ours (the second) into a bare Envoy's configuration.
Change = Callable[[Tree, Tree], None]


def _manager(tree: Tree) -> Tree:
    found: Tree = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def _route(tree: Tree) -> Tree:
    found: Tree = _manager(tree)["route_config"]["virtual_hosts"][0]["routes"][0]
    return found


def _ours(ours: Tree, name: str) -> Tree:
    found: Tree = next(each for each in _manager(ours)["http_filters"] if each["name"] == name)
    return copy.deepcopy(found)


def _filters(*names: str) -> Change:
    """Filters of ours before the router."""

    def change(tree: Tree, ours: Tree) -> None:
        _manager(tree)["http_filters"][-1:-1] = [_ours(ours, name) for name in names]

    return change


def _managers(*keys: str) -> Change:
    """Fields of the connection manager."""

    def change(tree: Tree, ours: Tree) -> None:
        for key in keys:
            _manager(tree)[key] = copy.deepcopy(_manager(ours)[key])

    return change


def _clusters(*keys: str) -> Change:
    """Fields of the engines' cluster."""

    def change(tree: Tree, ours: Tree) -> None:
        mine = next(each for each in ours["static_resources"]["clusters"] if each["name"] != SERVICE)
        theirs = next(each for each in tree["static_resources"]["clusters"] if each["name"] != SERVICE)
        for key in keys:
            theirs[key] = copy.deepcopy(mine[key])

    return change


def _all(*changes: Change) -> Change:
    def change(tree: Tree, ours: Tree) -> None:
        for each in changes:
            each(tree, ours)

    return change


def _metadata(tree: Tree, _: Tree) -> None:
    """What a decision says, by Envoy itself."""
    engines_ = tree["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    addresses = [each["endpoint"]["address"]["socket_address"] for each in engines_]
    said: dict[str, dict[str, str]] = {
        contract.LB_NAMESPACE: {
            contract.LB_ENDPOINTS_KEY: ",".join(f"{a['address']}:{a['port_value']}" for a in addresses)
        },
        contract.DECISION_NAMESPACE: {
            contract.TICKET_KEY: "t" * 200,
            contract.RESERVATION_KEY: "r" * 60,
            contract.EVENT_CLUSTER_KEY: SERVICE,
        },
    }
    kind = f"type.googleapis.com/{_HTTP.replace('envoy', 'envoy.extensions')}.set_metadata.v3.Config"
    entries = [{"metadata_namespace": name, "value": value} for name, value in said.items()]
    setting = {"name": f"{_HTTP}.set_metadata", "typed_config": {"@type": kind, "metadata": entries}}
    _manager(tree)["http_filters"].insert(0, setting)


def _router(tree: Tree, ours: Tree) -> None:
    _manager(tree)["http_filters"][-1] = _ours(ours, f"{_HTTP}.router")


def _retries(tree: Tree, ours: Tree) -> None:
    _route(tree)["route"]["retry_policy"] = copy.deepcopy(_route(ours)["route"]["retry_policy"])


def _told(tree: Tree, ours: Tree) -> None:
    for key in ("response_headers_to_add", "request_headers_to_remove"):
        _route(tree)[key] = copy.deepcopy(_route(ours)[key])


def _batched(tree: Tree, _: Tree) -> None:
    (log,) = _manager(tree)["access_log"]
    log["typed_config"]["common_config"]["buffer_size_bytes"] = 16384


def _no_request_id(tree: Tree, _: Tree) -> None:
    _manager(tree)["generate_request_id"] = False


def _headers_alone(tree: Tree, _: Tree) -> None:
    asking = next(f for f in _manager(tree)["http_filters"] if f["name"] == f"{_HTTP}.ext_proc")
    del asking["typed_config"]["processing_mode"]["request_body_mode"]


def _no_attributes(tree: Tree, _: Tree) -> None:
    asking = next(f for f in _manager(tree)["http_filters"] if f["name"] == f"{_HTTP}.ext_proc")
    del asking["typed_config"]["request_attributes"]


_ASKS = _filters(f"{_HTTP}.ext_proc")
_LOGS = _all(_metadata, _managers("access_log"))
#: What is put in, by its name in the table.
PARTS: dict[str, Change] = {
    BARE: lambda _, __: None,
    # Twice, so that the run shows what a difference of nothing looks like.
    "nothing": lambda _, __: None,
    "early header mutation": _managers("early_header_mutation_extensions"),
    "path normalisation": _managers("normalize_path", "merge_slashes", "path_with_escaped_slashes_action"),
    "request id (less, in a bare one)": _no_request_id,
    "identity filter, skipped": _filters("steersman.identity"),
    "buffer": _filters(f"{_HTTP}.buffer"),
    "ext_proc, two turns": _ASKS,
    "ext_proc, headers alone": _all(_ASKS, _headers_alone),
    "ext_proc without source.address": _all(_ASKS, _no_attributes),
    "buffer + ext_proc": _filters(f"{_HTTP}.buffer", f"{_HTTP}.ext_proc"),
    "metadata of a decision": _metadata,
    "override_host (with that metadata)": _all(_metadata, _clusters("load_balancing_policy")),
    "outlier detection, breakers": _clusters("outlier_detection", "circuit_breakers"),
    "retry policy": _retries,
    "headers for client and engine": _told,
    "local replies": _managers("local_reply_config"),
    "upstream header mutation": _router,
    "json_to_metadata": _filters(f"{_HTTP}.json_to_metadata"),
    "Lua: first chunk, events, counts": _filters(f"{_HTTP}.lua"),
    "Lua with the first-token event": _all(_filters(f"{_HTTP}.lua"), _metadata),
    "access log (with that metadata)": _LOGS,
    "access log in batches of 16 KiB": _all(_LOGS, _batched),
    "all of it": _all(
        _managers("early_header_mutation_extensions", "normalize_path", "merge_slashes"),
        _filters("steersman.identity", f"{_HTTP}.buffer", f"{_HTTP}.ext_proc"),
        _filters(f"{_HTTP}.json_to_metadata", f"{_HTTP}.lua"),
        _clusters("load_balancing_policy", "outlier_detection", "circuit_breakers"),
        _router,
        _retries,
        _told,
        _managers("local_reply_config"),
        _LOGS,
    ),
}


@dataclass
class Cost:
    """A part's cost in microseconds a request, a figure a round: Envoy's, and the no-op service's."""

    envoy: list[float] = field(default_factory=list)
    service: list[float] = field(default_factory=list)

    def add(self, figures: Sequence[float]) -> None:
        """One more round."""
        self.envoy.append(figures[0])
        self.service.append(figures[1])


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """The median, and half the distance between the quartiles."""
    return percentile(values, 0.5), (percentile(values, 0.75) - percentile(values, 0.25)) / 2


@contextlib.contextmanager
def _envoys(
    addresses: Sequence[str], service_port: int, names: Sequence[str], folder: Path
) -> Iterator[dict[str, tuple[int, int]]]:
    """An Envoy for each part: its port and its pid."""
    ours = json.loads(to_json(render_bootstrap(loads(OURS))))
    children, found = [], {}
    try:
        for name in names:
            port, admin_port = free_ports(2)
            tree = plain_bootstrap(addresses, port, admin_port, service_port)
            PARTS[name](tree, ours)
            file = folder / f"part{port}.json"
            file.write_text(json.dumps(tree))
            options = ["--disable-hot-restart", "--concurrency", "1", "-l", "error"]
            child = Child(f"part{port}", [envoy_binary(), "-c", str(file), *options], folder)
            child.start()
            children.append(child)
            found[name] = port, child.pid
        for name, (port, _) in found.items():
            wait_for(name, lambda port=port: listens(port))
        yield found
    finally:
        stop_all(children)


async def _costs(
    envoys: dict[str, tuple[int, int]], service_pid: int, kind: Kind, rounds: int
) -> dict[str, Cost]:
    request = kind.request()
    clients = {name: Load(port) for name, (port, _) in envoys.items()}
    for client in clients.values():
        await client.some(request, 40, CONNECTIONS)  # warm

    async def spent_us(name: str) -> tuple[float, float]:
        pids = envoys[name][1], service_pid
        before = [cpu_ns(pid) for pid in pids]
        await clients[name].some(request, BLOCK, CONNECTIONS)
        await asyncio.sleep(0.02)  # the record
        envoy, service = ((cpu_ns(pid) - was) / BLOCK / 1e3 for pid, was in zip(pids, before, strict=True))
        return envoy, service

    costs = {name: Cost() for name in envoys}
    for each in range(rounds):
        for name in [name for name in envoys if name != BARE]:
            # Side by side, and not first each time: what the machine does meanwhile hits both.
            order = (BARE, name) if each % 2 else (name, BARE)
            spent = {of: await spent_us(of) for of in order}
            costs[BARE].add(spent[BARE])
            costs[name].add([a - b for a, b in zip(spent[name], spent[BARE], strict=True)])
    failed = {name: client.failed + client.refused for name, client in clients.items()}
    for client in clients.values():
        client.close()
    assert not any(failed.values()), f"requests that were not served: {failed}"
    return costs


def measure(names: Sequence[str], rounds: int) -> dict[str, dict[str, Cost]]:
    """The costs of these parts, for each kind of request with a short prompt."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="steersman-bench-")))
        addresses = stack.enter_context(engines(folder))
        service_port, service_pid = stack.enter_context(noop(folder))
        envoys = stack.enter_context(_envoys(addresses, service_port, names, folder))
        return {
            kind.name: uvloop.run(_costs(envoys, service_pid, kind, rounds))
            for kind in KINDS
            if kind.prompt_bytes < 10_000
        }


def run() -> Iterator[Row]:
    """Yield Envoy's microseconds of each part, and the no-op service's where it has any."""
    for kind, costs in measure(list(PARTS), ROUNDS).items():
        for name, cost in costs.items():
            for whose, values in (("Envoy", cost.envoy), ("no-op service", cost.service)):
                median, half = _spread(values)
                yield Row(f"{kind}: {name}, {whose} (±{half:.0f})", median, "µs")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    found = measure(list(dict.fromkeys([BARE, *(arguments.parts or PARTS)])), arguments.rounds)
    columns = [f"{kind}, {whose}" for kind in found for whose in ("Envoy", "service")]
    print(f"{'µs of CPU per request':36}" + "".join(f"{each:>24}" for each in columns))
    for name in next(iter(found.values())):
        cells = [
            "{:17.0f} ±{:4.0f} ".format(*_spread(values))
            for costs in found.values()
            for values in (costs[name].envoy, costs[name].service)
        ]
        print(f"{name:36}" + "".join(cells), flush=True)


if __name__ == "__main__":
    _main()
