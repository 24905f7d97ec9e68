"""A real Envoy told by our ADS server: what comes, goes and is refused while requests run."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from gateway import ASK_S

from extproc.config.load import loads
from extproc.control.ads_server import AdsPublisher
from extproc.control.snapshot import EndpointState, FleetSnapshot, Resource, Resources, SnapshotBuilder

if TYPE_CHECKING:  # a conftest is not importable under importlib mode
    Gateway = Any

pytestmark = pytest.mark.envoy

POOL = "gateway: {auth: none}\npools: [{name: chat, models: [m], endpoints: [{address: 127.0.0.1:1}], %s}]"


@pytest.fixture(scope="module")
def lonely(
    envoy: str, tmp_path_factory: pytest.TempPathFactory, start_gateway: Any
) -> Iterator[Future[Gateway]]:
    """An Envoy that finds no service. It waits for one before it listens; other tests run meanwhile."""
    manager = start_gateway(envoy, tmp_path_factory.mktemp("lonely"), ads=["a"], start_services=False)
    with ThreadPoolExecutor(1) as starting:
        started = starting.submit(manager.__enter__)
        yield started
        if started.exception() is None:
            manager.__exit__(None, None, None)


@pytest.fixture(scope="module")
def gateway(
    envoy: str, tmp_path_factory: pytest.TempPathFactory, start_gateway: Any, lonely: Future[Gateway]
) -> Iterator[Gateway]:
    """Begins with one endpoint; without a decision requests go on by Envoy's own balancer."""
    folder = tmp_path_factory.mktemp("ads")
    with start_gateway(envoy, folder, ads=["a"], extra="  failure_mode: open") as running:
        yield running


def served_by(gateway: Gateway, endpoints: str = "") -> str:
    """Who serves a request whose decision names these endpoints; without any it has no decision."""
    headers = {"x-test-endpoints": endpoints} if endpoints else {"x-test-undecided": "1"}
    answer = gateway.call(headers=headers)
    assert answer.status == 200, answer.body
    return str(answer.json["from"])


def turned_away(gateway: Gateway, endpoints: str) -> bool:
    """Whether nobody serves a request whose decision names these endpoints."""
    return gateway.call(headers={"x-test-endpoints": endpoints}).status == 503


@contextlib.contextmanager
def stream(gateway: Gateway, endpoint: str) -> Iterator[None]:
    """A token stream of an endpoint that begins before the body of the with and ends whole after it."""
    answers: list[Any] = []
    headers = {"x-test-endpoints": endpoint, "x-test-tokens": "5", "x-test-gap-ms": "40", "x-test-gate": "1"}
    thread = threading.Thread(
        target=lambda: answers.append(gateway.call("/generate_stream", headers=headers))
    )
    before = len(gateway.upstreams[endpoint].requests)
    with gateway.gate(endpoint):
        thread.start()
        while len(gateway.upstreams[endpoint].requests) == before:
            time.sleep(0.005)
        yield
    thread.join()
    assert answers[0].status == 200
    assert answers[0].body.count(b"data:") == 5


@contextlib.contextmanager
def load(gateway: Gateway) -> Iterator[None]:
    """Requests without a pause; none may fail."""
    failed: list[Any] = []
    stop = threading.Event()

    def calls() -> None:
        while not stop.is_set():
            answer = gateway.call(headers={"x-test-endpoints": "b,a"})
            if answer.status != 200:
                failed.append((answer.status, answer.body))

    threads = [threading.Thread(target=calls) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed


def members(gateway: Gateway) -> set[str]:
    """The pool's endpoints as Envoy's admin shows them."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin, timeout=ASK_S)
    with contextlib.closing(connection):
        connection.request("GET", "/clusters?format=json")
        clusters = json.load(connection.getresponse())["cluster_statuses"]
    found = next(each for each in clusters if each["name"] == "pool.chat/standard").get("host_statuses", [])
    wheres = [host["address"]["socket_address"] for host in found]
    return {f"{where['address']}:{where['port_value']}" for where in wheres}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_endpoint_comes_under_load_and_can_be_named_at_once(gateway: Gateway) -> None:
    """No request fails, and the acknowledgement is the time from which a decision may name it."""
    gateway.publish("a")
    with load(gateway):
        for _ in range(10):
            gateway.publish("a", "b")
            assert served_by(gateway, "b") == "b"
            assert ("chat", gateway.service.addresses["b"]) in gateway.service.publisher.acked_addresses()
            gateway.publish("a")
            assert turned_away(gateway, "b"), "the list is a bound"
            assert gateway.service.publisher.acked_addresses() == {("chat", gateway.service.addresses["a"])}


def test_an_endpoint_that_goes_takes_no_stream_along(gateway: Gateway) -> None:
    """What runs on it ends whole; no new work comes to it, named or not."""
    gateway.publish("a", "b", "c")
    with stream(gateway, "c"):
        gateway.publish("a", "b")
        assert gateway.service.addresses["c"] not in members(gateway)
        assert all(turned_away(gateway, "c") for _ in range(5))
        assert {served_by(gateway, "c,b") for _ in range(5)} == {"b"}


def test_a_draining_endpoint_is_skipped_and_its_stream_is_not_cut(gateway: Gateway) -> None:
    """Also when a decision names it."""
    gateway.publish("a", "b")
    with stream(gateway, "b"):
        gateway.publish("a", b=EndpointState(gateway.service.addresses["b"], draining=True))
        assert {served_by(gateway, "b,a") for _ in range(5)} == {"a"}
        assert {served_by(gateway) for _ in range(5)} == {"a"}


@pytest.mark.parametrize(
    ("health", "others"),
    [(0.5, {"a", "b"}), (0.1, {"a", "b"}), (0.0, {"a"})],
    ids=["low", "degraded", "unhealthy"],
)
def test_the_decision_is_obeyed_whatever_the_health(
    gateway: Gateway, health: float, others: set[str]
) -> None:
    """Only what is not there is skipped: Envoy 1.40's override_host does not look at health.

    Envoy's own balancer does.
    """
    gateway.publish("a", b=EndpointState(gateway.service.addresses["b"], health=health))
    assert {served_by(gateway, "b,a") for _ in range(5)} == {"b"}
    assert {served_by(gateway) for _ in range(15)} <= others


def test_marked_as_draining_it_is_obeyed_too(gateway: Gateway) -> None:
    """Why draining endpoints are left out by default: an Envoy that skips them would make this fail."""
    opened = loads((POOL % "").replace("auth: none", "auth: none, failure_mode: open"))
    builder = SnapshotBuilder(opened, mark_draining=True)
    addresses = gateway.service.addresses
    states = [EndpointState(addresses["a"]), EndpointState(addresses["b"], draining=True)]
    gateway.push(builder.build({"chat": states}))
    assert {served_by(gateway, "b") for _ in range(3)} == {"b"}
    assert {served_by(gateway) for _ in range(10)} == {"a"}
    # Without the panic threshold of 0 a pool that drains as a whole would get work by chance.
    gateway.push(builder.build({"chat": [EndpointState(addresses["b"], draining=True)]}))
    assert gateway.call(headers={"x-test-endpoints": "stranger"}).status == 503


def changed(gateway: Gateway, *names: str, **fields: Any) -> FleetSnapshot:
    """A snapshot whose cluster differs."""
    from extproc.control.resources import pool_cluster  # a second of CPU, in each worker's collection

    config = loads(POOL % "circuit_breakers: {max_requests: 77}")
    cluster = pool_cluster(config, config.pools[0], config.classes[0], mode="ads")
    for name, value in fields.items():
        setattr(cluster, name, value)
    clusters = Resources.of([Resource("pool.chat/standard", bytes(cluster))])
    return FleetSnapshot(clusters, gateway.snapshot(*names).endpoints)


def test_a_changed_cluster_is_taken_under_load(gateway: Gateway) -> None:
    """It warms beside the old one, told of its endpoints again; no request fails and no stream is cut."""
    gateway.publish("a", "b")
    with load(gateway), stream(gateway, "b"):
        acks = gateway.service.publisher.counts["acks"]
        gateway.push(changed(gateway, "a", "b"))
        until(lambda: gateway.service.publisher.counts["acks"] >= acks + 2)
        gateway.publish("a", "b")


def test_a_bad_cluster_is_refused_and_the_last_good_kept(gateway: Gateway) -> None:
    """Told once, not in a loop; endpoints come and go meanwhile; a good one mends it."""
    gateway.publish("a", "b")
    publisher = gateway.service.publisher
    before = publisher.counts["nacks"]
    with load(gateway):
        bad = changed(gateway, "a", "b", connect_timeout=timedelta(0))
        gateway.loop.call(publisher.publish, bad)
        until(lambda: publisher.counts["nacks"] == before + 1)
        gateway.push(FleetSnapshot(bad.clusters, gateway.snapshot("b").endpoints))
        assert served_by(gateway, "a,b") == "b"
        time.sleep(0.2)
        assert publisher.counts["nacks"] == before + 1
        gateway.publish("a", "b")
        assert served_by(gateway, "a") == "a"


def test_bad_endpoints_are_refused_and_the_last_good_kept(gateway: Gateway) -> None:
    """As above."""
    gateway.publish("a", "b")
    publisher = gateway.service.publisher
    before = publisher.counts["nacks"]
    bad = Resources.of([Resource("pool.chat", b"\x0a\x00")])
    gateway.loop.call(publisher.publish, FleetSnapshot(gateway.snapshot().clusters, bad))
    until(lambda: publisher.counts["nacks"] == before + 1)
    assert served_by(gateway, "b") == "b"
    gateway.publish("b")
    assert served_by(gateway, "a,b") == "b"


def test_a_restarted_service_is_followed_again(gateway: Gateway) -> None:
    """Until then Envoy serves by what it was told last; streams run on."""
    gateway.publish("a", "b")
    with stream(gateway, "b"):
        gateway.loop.run(gateway.service.stop())
        # Envoy draws two with replacement: the busy one is drawn twice once in four.
        assert {served_by(gateway) for _ in range(40)} == {"a", "b"}
    publisher = gateway.service.publisher = AdsPublisher()
    gateway.loop.call(publisher.publish, gateway.snapshot("c"))
    gateway.loop.run(gateway.service.start())
    until(lambda: publisher.acked_addresses() is not None)
    assert members(gateway) == {gateway.service.addresses["c"]}


def test_a_starting_envoy_does_not_wait_for_ever(lonely: Future[Gateway]) -> None:
    """After FETCH_TIMEOUT_MS it listens and answers 503; it serves soon after the service has come."""
    gateway = lonely.result()
    assert gateway.call().status == 503
    gateway.loop.run(gateway.service.start())
    until(lambda: gateway.call(headers={"x-test-endpoints": "a"}).status == 200)
