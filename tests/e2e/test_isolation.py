"""Service classes do not take from each other, and know what to do without the service."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway import ASK_S, KEYS, Gateway, chat_pool, tenants, wait_for
from identity import AUDIENCE, ISSUER, Authority, TokenIssuer, ask, bearer
from replicas import Replicas, specs
from test_identity import PROXY, TlsGateway, client

pytestmark = pytest.mark.envoy

GENERATE = {"inputs": "[[sim:out=3]]", "parameters": {"max_new_tokens": 9}}
#: A share is two connections and two that wait for one; Envoy's own threads may add one each.
HANGING_MAX = 64
JSON = ("content-type", "application/json")


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    with Replicas(specs(2)) as running:
        yield running


def generate(gateway: Gateway, *headers: tuple[str, str], **how: Any) -> int:
    return ask(gateway, JSON, *headers, path="/generate", body=GENERATE, **how)[0]


@pytest.mark.parametrize("mode", ["static", "ads"])
def test_a_class_whose_breaker_is_full_leaves_the_others_alone(replicas: Replicas, mode: str) -> None:
    """Over the same endpoints: batch overflows at its share (503), premium is served."""
    gateway = Gateway(
        chat_pool(
            replicas.addresses,
            circuit_breakers={"max_connections": 8, "max_pending_requests": 8, "max_requests": 8},
        ),
        mode=mode,
        classes=[{"name": "premium"}, {"name": "batch", "share_of_breakers": 0.25}],
        tenants=tenants(acme={"class": "premium"}, globex={"class": "batch"}),
    )
    with gateway:
        wait_for("a decision", lambda: generate(gateway, bearer(KEYS["acme"])) == 200)
        for index in range(2):
            replicas.fault(index, hang=True)
        threads: list[threading.Thread] = []
        refused: list[tuple[int, str]] = []

        def send() -> None:
            status, _, body = gateway.call("/generate", GENERATE, key=KEYS["globex"])
            if status != 200:
                refused.append((status, body["error_type"]))

        def full() -> bool:
            """With one more that takes a place or finds none: who waits for a connection leaves its place."""
            if len(threads) < HANGING_MAX:
                threads.append(threading.Thread(target=send))
                threads[-1].start()
            return bool(refused) and _overflowed(gateway, "batch") > 0

        try:
            wait_for("overflow", full)
        finally:
            for index in range(2):
                replicas.fault(index, clear=True)
        assert generate(gateway, bearer(KEYS["acme"])) == 200
        assert _overflowed(gateway, "premium") == 0
        for thread in threads:
            thread.join(20)
        assert set(refused) == {(503, "overloaded")}
        wait_for("batch again", lambda: generate(gateway, bearer(KEYS["globex"])) == 200)


def _stats(gateway: Gateway, text: str) -> dict[str, int]:
    import urllib.request

    url = f"http://127.0.0.1:{gateway.admin_port}/stats?filter={text}"
    with urllib.request.urlopen(url, timeout=ASK_S) as answer:
        lines = answer.read().decode().splitlines()
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}


def _overflowed(gateway: Gateway, name: str) -> int:
    found = _stats(gateway, f"cluster.pool.chat/{name}.upstream_rq_pending_overflow")
    return sum(found.values())


def test_a_class_is_added_live(replicas: Replicas) -> None:
    """Over ADS: its cluster takes the endpoints that its pool's others have; the last ones stay served."""
    gateway = Gateway(chat_pool(replicas.addresses), mode="ads")
    with gateway:
        wait_for("a decision", lambda: generate(gateway, bearer(KEYS["acme"])) == 200)
        gateway.config["classes"] = [{"name": "standard"}, {"name": "batch"}]
        gateway.config["tenants"] = tenants(globex={"class": "batch"})
        gateway.write_config()
        assert gateway.service.process is not None
        gateway.service.process.send_signal(signal.SIGHUP)
        wait_for("the reload", lambda: gateway.status()["counts"].get("reload.applied") == 1)
        wait_for("the new cluster", lambda: generate(gateway, bearer(KEYS["globex"])) == 200)
        assert generate(gateway, bearer(KEYS["acme"])) == 200
        assert gateway.status()["roster"]["ads"]["nacks"] == 0


def test_a_class_has_its_own_retries_and_ejections(replicas: Replicas) -> None:
    """Batch is not retried; what it meets ejects an endpoint for batch alone."""
    gateway = Gateway(
        chat_pool(replicas.addresses, strategy="round_robin"),
        gateway={"retries": 2},
        classes=[
            {"name": "premium"},
            {"name": "batch", "retries": 0, "outlier_detection": {"consecutive_5xx": 1}},
        ],
        tenants=tenants(acme={"class": "premium"}, globex={"class": "batch"}),
    )
    with gateway:
        replicas.fault(0, refuse_share=1.0, status=503)
        try:
            answers = []
            for _ in range(6):
                answers.append(generate(gateway, bearer(KEYS["acme"])))
                time.sleep(0.15)
            assert answers == [200] * 6
            wait_for("a failure of batch", lambda: generate(gateway, bearer(KEYS["globex"])) == 503)
        finally:
            replicas.fault(0, clear=True)
        ejected = _stats(gateway, "ejections_active")
        assert ejected["cluster.pool.chat/batch.outlier_detection.ejections_active"] == 1
        assert ejected["cluster.pool.chat/premium.outlier_detection.ejections_active"] == 0


def test_without_the_service_a_class_goes_by_its_own_failure_mode(replicas: Replicas, tmp_path: Path) -> None:
    """Where Envoy knows the tenant: by token and by proxy. By key it does not, and the gateway's counts."""
    issuer = TokenIssuer(tmp_path)
    jwt = {"issuer": ISSUER, "audiences": [AUDIENCE], "jwks_inline": issuer.jwks}
    gateway = Gateway(
        chat_pool(replicas.addresses),
        gateway={"jwt": jwt, "trusted_proxy": {"networks": [f"{PROXY}/32"]}},
        classes=[{"name": "premium", "failure_mode": "open"}, {"name": "batch"}],
        tenants=tenants(
            acme={"class": "premium", "jwt_subject": "a"}, globex={"class": "batch", "jwt_subject": "g"}
        ),
    )
    acme, globex = (bearer(issuer.token(subject)) for subject in ("a", "g"))
    with gateway:
        assert [generate(gateway, each) for each in (acme, globex)] == [200, 200]
        gateway.service.kill()
        assert [generate(gateway, each) for each in (acme, globex)] == [200, 503]
        assert [generate(gateway, bearer(key)) for key in KEYS.values()] == [503, 503]
        named = ("x-forwarded-tenant", "acme")
        assert generate(gateway, named, source=PROXY) == 200
        assert generate(gateway, named) == 503, "from elsewhere the header is nothing"
        assert generate(gateway, bearer(issuer.token("a", lives_s=-3600))) == 503
        wait_for("premium's cluster", lambda: _stats(gateway, "pool.chat/premium.upstream_rq_200"))


def test_an_open_gateway_with_a_closed_class_and_a_floor(replicas: Replicas, tmp_path: Path) -> None:
    """Certificates too; and what goes on is bounded for each address by Envoy itself."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("gateway", "IP:127.0.0.1")
    closed = client(authority, authority.issue("acme", "URI:spiffe://test/acme"))
    dns = client(authority, authority.issue("globex", "DNS:globex.test"))
    tls = {"certificate": str(certificate), "key": str(key), "client_ca": str(authority.certificate)}
    gateway = TlsGateway(
        chat_pool(replicas.addresses),
        gateway={"tls": tls, "failure_mode": "open"},
        classes=[
            {"name": "premium", "failure_mode": "closed"},
            {"name": "standard", "requests_per_second_floor": 3},
        ],
        tenants=tenants(
            acme={"class": "premium", "certificate_sans": ["spiffe://test/acme"]},
            globex={"class": "standard", "certificate_sans": ["globex.test"]},
        ),
    )
    gateway.context = client(authority)
    with gateway:
        # The floor does nothing while the service decides.
        assert [generate(gateway, context=closed) for _ in range(6)] == [200] * 6
        gateway.service.kill()
        assert generate(gateway, context=closed) == 503
        forged = ("x-steersman-peer-uri", "spiffe://test/anybody")
        assert generate(gateway, forged, context=closed) == 503
        with ThreadPoolExecutor(12) as threads:
            at_once = [threads.submit(generate, gateway, context=dns, source="127.0.0.3") for _ in range(24)]
            answers = [each.result() for each in at_once]
        assert set(answers) == {200, 429}
        assert answers.count(200) >= 3
        assert generate(gateway, context=gateway.context, source="127.0.0.4") == 200, "another's floor"
        how = {"context": dns, "source": "127.0.0.3", "path": "/v1/completions", "body": {"prompt": "x"}}
        with ThreadPoolExecutor(12) as threads:
            at_once = [threads.submit(ask, gateway, JSON, **how) for _ in range(24)]
        status, body, headers = next(each.result() for each in at_once if each.result()[0] == 429)
        assert (body["error"]["code"], headers["retry-after"]) == ("overloaded", "1")
        assert generate(gateway, context=closed, source="127.0.0.5") == 503
        assert status == 429
