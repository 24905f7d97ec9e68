"""Kills, restarts, reloads and clients that leave: the streams go on and the books come right."""

from __future__ import annotations

import http.client
import json
import signal
import threading

import pytest
from gateway import KEYS, Gateway, chat_pool, wait_for
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

STREAMS = 100
TOKENS = 150


def stream(gateway: Gateway, tokens: int, counts: list[int], index: int) -> None:
    """Read one stream to its end; counts[index] becomes its tokens, -1 for a broken one."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    body = json.dumps({"inputs": f"[[sim:out={tokens}]]", "parameters": {"max_new_tokens": tokens}})
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['acme']}"}
    try:
        connection.request("POST", "/generate_stream", body, headers)
        answer = connection.getresponse()
        lines = [line for line in answer.read().split(b"\n") if line.startswith(b"data:")]
        last = json.loads(lines[-1].removeprefix(b"data:")) if lines else {}
        counts[index] = len(lines) if last.get("generated_text") else -1
    except (OSError, http.client.HTTPException, ValueError):
        counts[index] = -1
    finally:
        connection.close()


@pytest.mark.soak
def test_kill_9_of_the_service_cuts_no_stream_and_the_books_come_right() -> None:
    """100 streams run, the service is killed, 100 come whole; the new one adopts and ends at zero."""
    with Replicas(specs(4, time_scale=0.3)) as replicas, Gateway(chat_pool(replicas.addresses)) as gateway:
        counts = [0] * STREAMS
        threads = [threading.Thread(target=stream, args=(gateway, TOKENS, counts, i)) for i in range(STREAMS)]
        for thread in threads:
            thread.start()
        wait_for("all in flight", lambda: gateway.status()["in_flight"] == STREAMS)
        gateway.service.kill()
        gateway.start_service()
        # Heartbeats of the running streams bring their reservations to the new process.
        wait_for("adoption", lambda: gateway.status()["counts"].get("adopted", 0) > 0)
        for thread in threads:
            thread.join(60)
        assert counts == [TOKENS] * STREAMS
        wait_for("quiet", gateway.quiet)
        wait_for("the next request", lambda: gateway.call("/generate", {"inputs": "[[sim:out=2]]"})[0] == 200)


def test_a_client_that_leaves_frees_its_entry_and_the_engine() -> None:
    """The ledger entry goes with the client, neither at its expiry nor the answer's end; the engine stops."""
    with Replicas(specs(1, time_scale=0.5)) as replicas, Gateway(chat_pool(replicas.addresses)) as gateway:
        for _ in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
            connection.request(
                "POST",
                "/generate_stream",
                json.dumps({"inputs": "[[sim:out=900]]", "parameters": {"max_new_tokens": 900}}),
                {"content-type": "application/json", "authorization": f"Bearer {KEYS['acme']}"},
            )
            answer = connection.getresponse()
            assert answer.readline().startswith(b"data:")
            assert gateway.status()["in_flight"] == 1
            # Both, since the response holds the socket open as well.
            answer.close()
            connection.close()
            wait_for("release", gateway.quiet)
            wait_for("the engine", lambda: replicas.state(0)["running"] == 0)
        status = gateway.status()
        assert status["tenants"]["acme"]["client_gone"] == 3
        assert status["counts"].get("expired", 0) == 0


def test_sigterm_drains_without_cutting_a_stream() -> None:
    """SIGTERM while streams run: the service exits 0, the streams come whole."""
    with Replicas(specs(2, time_scale=0.5)) as replicas, Gateway(chat_pool(replicas.addresses)) as gateway:
        counts = [0] * 10
        threads = [threading.Thread(target=stream, args=(gateway, 60, counts, i)) for i in range(10)]
        for thread in threads:
            thread.start()
        wait_for("all in flight", lambda: gateway.status()["in_flight"] == 10)
        assert gateway.service.stop() == 0
        for thread in threads:
            thread.join(60)
        assert counts == [60] * 10


def test_service_away_is_503_when_closed_and_served_when_open() -> None:
    """failure_mode closed answers 503 while the service is away; open serves by Envoy's balancer."""
    body = {"inputs": "[[sim:out=2]]"}
    with Replicas(specs(2)) as replicas:
        for mode, expected in (("closed", 503), ("open", 200)):
            with Gateway(chat_pool(replicas.addresses), gateway={"failure_mode": mode}) as gateway:
                gateway.service.kill()
                assert gateway.call("/generate", body)[0] == expected
                gateway.start_service()
                wait_for("decisions again", lambda: _decided(gateway, body))


def _decided(gateway: Gateway, body: object) -> bool:
    status, headers, _ = gateway.call("/generate", body)
    return status == 200 and "x-steersman-pool" in headers


def test_a_bad_reload_keeps_the_last_good_configuration() -> None:
    """SIGHUP with a broken file changes nothing; with a good one a new tenant is let in at once."""
    from extproc.core.tenant import hash_key

    body = {"inputs": "[[sim:out=2]]"}
    with Replicas(specs(1)) as replicas, Gateway(chat_pool(replicas.addresses)) as gateway:
        good = gateway.config_file.read_text()
        gateway.config_file.write_text("pools: []\n")
        gateway.service.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        wait_for("refusal", lambda: gateway.status()["counts"].get("reload.refused", 0) >= 1)
        assert gateway.call("/generate", body)[0] == 200
        assert "pools" in gateway.service.log.read_text()
        gateway.config_file.write_text(good)
        gateway.config["tenants"].append({"name": "initech", "keys": [{"sha256": hash_key("sk-initech")}]})
        gateway.write_config()
        assert gateway.call("/generate", body, key="sk-initech")[0] == 401
        gateway.service.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        wait_for("the reload", lambda: gateway.status()["counts"].get("reload.applied", 0) >= 1)
        assert gateway.call("/generate", body, key="sk-initech")[0] == 200
