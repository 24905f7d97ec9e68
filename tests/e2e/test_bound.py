"""The decision's list is a bound, whatever Envoy does: regions, permits and reserved pools hang on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from gateway import KEYS, Gateway, free_ports, wait_for

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

GENERATE = {"inputs": "secret of acme", "parameters": {"max_new_tokens": 5}}
LOST, BUSY, SLOTS, OWN, ALL = "lost", "busy", "slots", "own", "all"


class Engine:
    """One port that answers as it is told and counts who asked."""

    def __init__(self) -> None:
        self.status, self.delay_s, self.seen = 200, 0.0, 0
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                engine.seen += 1
                time.sleep(engine.delay_s)
                body = b'{"generated_text":"x"}' if engine.status == 200 else b'{"error":"no"}'
                self.send_response(engine.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing: a test's output is its own."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


#: By conftest.py: one gateway serves all of them, and what one test has ejected another must not miss.
IN_ORDER = True


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    running = {name: Engine() for name in ("lost us", "busy eu", "busy us", "slots", "own", "all", "shared")}
    yield running
    for engine in running.values():
        engine.server.shutdown()
        engine.server.server_close()


def dead() -> str:
    """An address at which nobody listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture(scope="module", params=["static", "ads"])
def gateway(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Iterator[Gateway]:
    """acme may be served in the EU alone, and has a pool of its own; globex neither."""

    def here(name: str, region: str, **more: Any) -> dict[str, Any]:
        return {"address": engines[name].address, "region": region, **more}

    pools = {
        LOST: [{"address": dead(), "region": "eu"}, here("lost us", "us")],
        BUSY: [here("busy eu", "eu"), here("busy us", "us")],
        SLOTS: [{"address": dead()}, here("slots", "eu", max_concurrent=2)],
        OWN: [here("own", "eu")],
        ALL: [here("all", "eu")],
    }
    about: dict[str, dict[str, Any]] = {
        name: {"models": [name], "addresses": each} for name, each in pools.items()
    }
    # The same model for everybody else, and a family that holds it.
    about[OWN] |= {"models": ["shared", "secret"], "tenants": ["acme"]}
    about[ALL] |= {"models": ["shared"]}
    about[LOST] |= {"outlier_detection": {"consecutive_5xx": 1}}
    about[BUSY] |= {"outlier_detection": {"consecutive_5xx": 1}}
    with Gateway(
        about,
        mode=request.param,
        gateway={"retries": 4, "failure_mode": "open", "default_model": LOST},
        classes=[{"name": "standard", "hold_ms": 0}],
        probes={"enabled": False},  # they would take out the dead before Envoy meets them
        families=[{"name": "any", "models": ["secret", "shared"]}],
        tenants=[
            {"name": "acme", "keys": [{"sha256": hash_key(KEYS["acme"])}], "regions": ["eu"]},
            {"name": "globex", "keys": [{"sha256": hash_key(KEYS["globex"])}]},
        ],
    ) as running:
        yield running


def generate(gateway: Gateway, model: str, who: str = "acme") -> int:
    return gateway.call("/generate", GENERATE, key=KEYS[who], headers={"x-model": model})[0]


@pytest.fixture(autouse=True)
def _fresh(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        engine.status, engine.delay_s, engine.seen = 200, 0.0, 0


def test_a_region_whose_only_replica_is_dead_is_not_left(
    gateway: Gateway, engines: dict[str, Engine]
) -> None:
    """Retries are left, and another region has room: 503 all the same."""
    assert [generate(gateway, LOST) for _ in range(5)] == [503] * 5
    assert engines["lost us"].seen == 0
    wait_for("another tenant", lambda: generate(gateway, LOST, "globex") == 200)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_region_whose_only_replica_refuses_is_not_left(
    gateway: Gateway, engines: dict[str, Engine], status: int
) -> None:
    """The client gets that replica's own answer, once it is ejected too."""
    engines["busy eu"].status = status
    assert {generate(gateway, BUSY) for _ in range(6)} <= {status, 503}
    assert engines["busy us"].seen == 0
    # Each request was tried once there: the list had no more.
    assert 1 <= engines["busy eu"].seen <= 6


def test_a_full_replica_is_not_overfilled_by_retries(gateway: Gateway, engines: dict[str, Engine]) -> None:
    """Two permits, and eight at once whose first choice may be a dead replica: never more than two."""
    slots = engines["slots"]
    slots.delay_s = 1.0
    most = 0
    for _ in range(3):
        slots.seen = 0
        with ThreadPoolExecutor(8) as many:
            answers = list(many.map(lambda _: generate(gateway, SLOTS, "globex"), range(8)))
        most = max(most, slots.seen)
        assert answers.count(200) == slots.seen
        assert set(answers) <= {200, 429, 503}
    assert most <= 2


def test_a_reserved_pool_is_its_tenants_alone(gateway: Gateway, engines: dict[str, Engine]) -> None:
    """By its model's name, by a family, in the list of models: to others it is not there."""
    listed = {who: gateway.call("/v1/models", key=KEYS[who], method="GET")[2]["data"] for who in KEYS}
    names = {who: {each["id"] for each in models} for who, models in listed.items()}
    assert "secret" in names["acme"]
    assert "secret" not in names["globex"]
    assert {"shared", "any"} <= names["globex"]
    assert generate(gateway, "secret", "globex") == 404
    assert [generate(gateway, name, "globex") for name in ("shared", "any", "any")] == [200] * 3
    assert (engines["own"].seen, engines["all"].seen) == (0, 3)
    assert [generate(gateway, name) for name in ("shared", "secret", "any")] == [200] * 3
    assert (engines["own"].seen, engines["all"].seen) == (3, 3)


def test_without_the_service_nobody_leaves_its_region(gateway: Gateway, engines: dict[str, Engine]) -> None:
    """failure_mode is open, and by their keys Envoy cannot tell tenants apart: nobody is let through."""
    # The last test of its gateway: it stays away.
    gateway.service.kill()
    wait_for("Envoy to notice", lambda: generate(gateway, LOST) in (500, 503))
    assert {generate(gateway, LOST, who) for who in KEYS} <= {500, 503}
    assert all(engine.seen == 0 for engine in engines.values())
