"""Replicas by host name where Envoy's configuration is static: Envoy looks them up as the service does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, free_ports, wait_for
from name_server import NameServer
from scripted_engine import Script, ScriptedEngine

pytestmark = pytest.mark.envoy
#: By conftest.py: the last test takes the resolver away.
IN_ORDER = True

CHAT = "/v1/chat/completions"
HERE = Path(__file__).parent
ANSWER = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Ahoy"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}
NAME, NONE = "llm.test", "gone.test"


class StaticGateway(Gateway):
    """Whose Envoy asks the tests' own name server."""

    def __init__(self, server: NameServer, *args: Any, **more: Any) -> None:
        self._server = server
        super().__init__(*args, **more)

    def bootstrap(self) -> str:
        where = {"socket_address": {"address": "127.0.0.1", "port_value": self._server.port}}
        cares = {
            "@type": "type.googleapis.com/"
            "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [where],
        }
        resolver = {"name": "envoy.network.dns_resolver.cares", "typed_config": cares}
        return json.dumps({**json.loads(super().bootstrap()), "typed_dns_resolver_config": resolver})


class Place:
    """Four replicas on one port of three addresses, and what the site's names lead to."""

    def __init__(
        self, gateway: Gateway, server: NameServer, file: Path, engines: Sequence[ScriptedEngine]
    ) -> None:
        self.gateway, self.server, self.file, self.engines = gateway, server, file, engines

    def lead(self, names: Mapping[str, Sequence[int]] | None) -> None:
        """Names lead to these replicas from now on; None: the resolver fails."""
        if names is None:
            self.server.names = None
            self.file.unlink()
            return
        hosts = {
            name: [self.engines[at].address.rpartition(":")[0] for at in found]
            for name, found in names.items()
        }
        self.server.names = hosts
        said = self.file.with_suffix(".next")
        said.write_text(" ".join(f"{name}={','.join(found)}" for name, found in hosts.items()))
        said.rename(self.file)

    def ask(self, model: str) -> int:
        return self.gateway.call(CHAT, {"model": model, "messages": [{"role": "user", "content": "x"}]})[0]

    def serve(self, model: str, count: int = 12) -> set[int]:
        """Which replicas are asked, while every request is answered."""
        for each in self.engines:
            each.seen.clear()
        assert [self.ask(model) for _ in range(count)] == [200] * count
        return {at for at, each in enumerate(self.engines) if each.seen}

    def known(self, model: str) -> int:
        return sum(each["pool"] == model for each in self.gateway.status()["endpoints"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    file = tmp_path_factory.mktemp("names") / "names"
    file.write_text("")
    (port,) = free_ports(1)
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("STEERSMAN_TEST_NAMES", str(file))
        server = stack.enter_context(NameServer({}))
        engines = [
            stack.enter_context(ScriptedEngine(lambda _: Script(ANSWER), host=f"127.0.0.{at}", port=port))
            for at in (1, 2, 3, 4)
        ]
        soon = {"port": port, "interval_s": 1, "gone_after_s": 15}
        pools: dict[str, dict[str, Any]] = {
            "named": {"addresses": [], "discovery": {"dns": [{"name": NAME, **soon}]}},
            "gone": {"addresses": [], "discovery": {"dns": [{"name": NONE, **soon}]}},
            "listed": {"addresses": [f"listed.test:{port}"]},
        }
        for name, pool in pools.items():
            pool |= {"models": [name], "engine": "vllm", "strategy": "round_robin"}
        # An address stands once in the fleet: each pool has its own.
        gateway = StaticGateway(
            server, pools, service_script=HERE / "named_service.py", probes={"enabled": False}
        )
        found = Place(gateway, server, file, engines)
        found.lead({NAME: [0], NONE: [1], "listed.test": [2]})
        stack.enter_context(gateway)
        yield found


def test_a_name_is_served(place: Place) -> None:
    """Listed as an endpoint, or under discovery; the replica is asked for by that name."""
    for at, (model, host) in enumerate((("named", NAME), ("gone", NONE), ("listed", "listed.test"))):
        wait_for(model, lambda model=model: place.ask(model) == 200)
        assert place.serve(model) == {at}
        assert place.engines[at].seen[-1].headers["host"].partition(":")[0] == host
        assert place.gateway.mode == "static"


def test_its_addresses_come_and_go(place: Place) -> None:
    """A second one joins and shares the work; the first one leaves and is asked no more."""
    place.lead({NAME: [0, 3], NONE: [1], "listed.test": [2]})
    wait_for("both", lambda: place.known("named") == 2)
    looks = len(place.server.asked)
    wait_for("Envoy's look", lambda: place.server.asked[looks:].count(NAME) >= 4)
    assert place.serve("named") == {0, 3}
    place.lead({NAME: [3], NONE: [1], "listed.test": [2]})
    wait_for("the first one's end", lambda: place.known("named") == 1)
    assert place.serve("named") == {3}


def test_a_name_that_is_no_more_leaves_after_its_bound(place: Place) -> None:
    """Until then its replica serves, though Envoy has been told that there is no such name."""
    looks = len(place.server.asked)
    place.lead({NAME: [3], "listed.test": [2]})
    told: list[int] = []

    def over() -> bool:
        envoy_knows = place.server.asked[looks:].count(NONE) >= 6
        status = place.ask("gone")
        if place.known("gone") and envoy_knows:
            told.append(status)
        return not place.known("gone")

    wait_for("its end", over)
    assert told
    assert set(told) == {200}
    assert place.ask("gone") == 503
    place.lead({NAME: [3], NONE: [1], "listed.test": [2]})
    wait_for("the name again", lambda: place.ask("gone") == 200)


def test_while_the_resolver_fails_names_stay(place: Place) -> None:
    """Envoy's and the service's: what it said last stands, beyond the bound."""
    asked = len(place.server.asked)
    place.lead(None)
    wait_for("Envoy's looks", lambda: place.server.asked[asked:].count(NAME) >= 20)
    assert place.serve("named") == {3}
    assert place.serve("listed") == {2}
