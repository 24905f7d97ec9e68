"""What the gateway does with faults of the replicas, and with clients that lie or err."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any

import pytest
from gateway import KEYS, Gateway, chat_pool, free_ports, wait_for
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

GENERATE = {"inputs": "[[sim:out=3]]", "parameters": {"max_new_tokens": 9}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["refused", 503, 429])
def test_a_failing_first_endpoint_is_one_success_for_the_client(fault: str | int, stream: bool) -> None:
    """Refused connection, 503 and 429 of the first endpoint land on the second; the client sees 200."""
    with Replicas(specs(2)) as replicas:
        addresses = list(replicas.addresses)
        if fault == "refused":
            addresses[0] = f"127.0.0.1:{free_ports(1)[0]}"
        else:
            replicas.fault(0, refuse_share=1.0, status=fault)
        # Our own look at the one that refuses would take it out first.
        off = {"enabled": fault != "refused"}
        with Gateway(chat_pool(addresses, strategy="round_robin"), probes=off) as gateway:
            path = "/generate_stream" if stream else "/generate"

            def retried() -> bool:
                status, headers, _ = gateway.call(path, GENERATE)
                assert status == 200
                assert headers["x-steersman-endpoint"] == addresses[1]
                return bool(headers["x-steersman-attempts"] == "2")

            def suspected() -> bool:
                # The record comes soon after the answer; the suspicion lasts twice as long each time.
                gateway.call(path, GENERATE)
                suspects = {e["address"]: e["suspect"] for e in gateway.status()["endpoints"]}
                return suspects == {addresses[0]: True, addresses[1]: False}

            wait_for("a retry", retried)
            wait_for("a suspicion", suspected)
            wait_for("quiet", gateway.quiet)


def test_a_forged_routing_header_changes_nothing(fleet: tuple[Gateway, Replicas]) -> None:
    """A client that names cluster and endpoint itself gets what the service chose."""
    gateway, replicas = fleet
    forged = {
        "x-steersman-cluster": "pool.code",
        "x-gateway-destination-endpoint": replicas.addresses[3],
        "x-steersman-tenant": "globex",
        "x-envoy-retry-on": "5xx",
    }
    before = gateway.status()["tenants"].get("globex", {}).get("decided", 0)
    for _ in range(5):
        status, headers, _ = gateway.call("/generate", GENERATE, headers=forged)
        assert status == 200
        assert headers["x-steersman-pool"] == "chat"
        assert headers["x-steersman-endpoint"] in replicas.addresses[:2]
    assert gateway.status()["tenants"].get("globex", {}).get("decided", 0) == before


def test_client_mistakes_get_their_own_status(fleet: tuple[Gateway, Replicas]) -> None:
    """400, 401, 404 and their bodies in the dialect of the route."""
    gateway, _ = fleet
    status, _, body = gateway.call("/v1/chat/completions", b'{"model": "tiny-chat", "messages": [')
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    status, _, body = gateway.call("/generate", b"nonsense")
    assert (status, body["error_type"]) == (400, "validation")
    status, _, body = gateway.call("/v1/chat/completions", {"model": "nope", "messages": [{"content": "x"}]})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    status, headers, body = gateway.call("/generate", GENERATE, key=None)
    assert (status, body["error_type"]) == (401, "invalid_api_key")
    assert headers["www-authenticate"] == "Bearer"
    assert gateway.call("/generate", GENERATE, key="sk-wrong")[0] == 401
    assert gateway.call("/v2/nothing", GENERATE)[0] == 404


def answered_early(gateway: Gateway, path: str, body: object) -> tuple[int, Any]:
    """As clients do: the answer is read although the body could not be sent to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    headers = {"authorization": f"Bearer {KEYS['acme']}", "content-type": "application/json"}
    with contextlib.closing(connection):
        with contextlib.suppress(ConnectionError):
            connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_oversized_body_is_413_and_a_3_mb_prompt_passes_when_configured() -> None:
    """The body bound is the configured one: above it 413 in the dialect, below it everything passes."""
    huge = {"payload_limit_bytes": 8_000_000, "max_input_tokens": 900_000, "max_total_tokens": 901_000}
    roomy = specs(
        2, kv_capacity_tokens=2_000_000, time_scale=1000.0, max_batch_prefill_tokens=900_000, **huge
    )
    prompt = "[[sim:out=2]] " + "word " * 600_000
    with Replicas(roomy) as replicas:
        with Gateway(chat_pool(replicas.addresses), gateway={"body_bytes_max": 4_000_000}) as gateway:
            status, _, body = gateway.call("/generate", {"inputs": prompt})
            assert status == 200, body
            status, body = answered_early(gateway, "/generate", {"inputs": prompt + prompt})
            assert (status, body["error_type"]) == (413, "validation")
            both = {"model": "tiny-chat", "prompt": prompt * 2}
            status, body = answered_early(gateway, "/v1/completions", both)
            assert (status, body["error"]["type"]) == (413, "invalid_request_error")


def test_the_unix_socket_serves_as_well() -> None:
    """Envoy reaches the service over a Unix socket."""
    with Replicas(specs(1)) as replicas, Gateway(chat_pool(replicas.addresses), unix=True) as gateway:
        assert gateway.call("/generate", GENERATE)[0] == 200


def test_keys_do_not_reach_the_engines(fleet: tuple[Gateway, Replicas]) -> None:
    """A tenant's restriction holds, and a second tenant's key is its own."""
    gateway, _ = fleet
    assert gateway.call("/generate", GENERATE, key=KEYS["globex"])[0] == 200
    wait_for("quiet", gateway.quiet)
    assert gateway.status()["tenants"]["globex"]["ok"] >= 1


def test_every_replica_full_is_429_with_retry_after() -> None:
    """With every permit taken the ledger refuses before an engine would inside a 200."""
    with Replicas(specs(1, max_concurrent_requests=1)) as replicas:
        endpoints = [{"address": replicas.addresses[0], "max_concurrent": 1}]
        with Gateway({"chat": {"models": ["tiny-chat"], "addresses": endpoints}}) as gateway:
            replicas.fault(0, hang=True)
            import threading

            first = threading.Thread(target=gateway.call, args=("/generate", GENERATE))
            first.start()
            wait_for("the first in flight", lambda: gateway.status()["in_flight"] == 1)
            status, headers, body = gateway.call("/v1/completions", {"prompt": "x", "model": "tiny-chat"})
            assert (status, body["error"]["code"]) == (429, "overloaded")
            assert int(headers["retry-after"]) >= 1
            replicas.fault(0, clear=True)
            first.join(20)
            wait_for("quiet", gateway.quiet)
