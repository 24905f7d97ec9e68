"""Alerts through the real Envoy: an incident, a blip, a receiver that fails twice, and the end of it."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from gateway import KEYS, Gateway, wait_for
from replicas import Replicas, specs

pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(300)]

SECRET = "a-secret-of-the-receiver"
#: The built-in rule of this name on a shorter scale: a window of 10 s in the place of 30.
RULE = {
    "name": "LatencyAndErrors",
    "each": "pool",
    "severity": "critical",
    "for_s": 3,
    "clear_s": 5,
    "min_requests": 5,
    "when": {
        "all_of": [
            {"signal": "ttft_p90_ms", "over_s": 10, "times": 2, "above": 100, "baseline_s": 60},
            {"signal": "error_rate", "over_s": 10, "above": 0.05},
        ]
    },
}


class Receiver:
    """A webhook's receiver whose first answers fail; keeps what came, and when."""

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.attempts: list[dict[str, Any]] = []
        self.taken: list[tuple[float, dict[str, Any]]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                stamp = self.headers["x-steersman-timestamp"]
                signed = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
                assert self.headers["x-steersman-signature"] == f"sha256={signed}"
                receiver.attempts.append(json.loads(body))
                failed = receiver.left > 0
                receiver.left -= failed
                if not failed:
                    receiver.taken.append((time.monotonic(), json.loads(body)))
                self.send_response(503 if failed else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Traffic:
    """Eight short streams a second, until told to stop."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(12)]

    def _run(self) -> None:
        body = json.dumps({"inputs": "hello [[sim:out=4]]", "parameters": {"max_new_tokens": 4}})
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['acme']}"}
        while not self._stop.wait(len(self._threads) / 8):
            connection = http.client.HTTPConnection("127.0.0.1", self._gateway.port, timeout=30)
            try:
                connection.request("POST", "/generate_stream", body, headers)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                pass  # an error is what an incident is made of
            finally:
                connection.close()

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Gateway, Replicas, Receiver]]:
    """A gateway over two replicas that tells a receiver, which fails twice."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    with Receiver(failures=2) as receiver, Replicas(specs(2, time_scale=1.0)) as replicas:
        webhook = {
            "name": "pager",
            "url": receiver.url,
            "severity_min": "critical",
            "retry_min_ms": 200,
            "secret_file": str(secret),
        }
        alerts = {"rules": [RULE], "webhooks": [webhook]}
        pools = {"chat": {"models": ["tiny-chat"], "addresses": replicas.addresses}}
        with Gateway(pools, alerts=alerts) as gateway:
            yield gateway, replicas, receiver


@pytest.mark.soak
def test_an_incident_fires_once_and_a_blip_does_not(place: tuple[Gateway, Replicas, Receiver]) -> None:
    """Latency alone tells nobody; latency with errors tells within 30 s, once, and again when it is over."""
    gateway, replicas, receiver = place
    alerts: Callable[[], dict[str, Any]] = lambda: gateway.order("Alerts")  # noqa: E731
    with Traffic(gateway):
        time.sleep(25)  # what is usual
        for i in range(2):
            replicas.fault(i, slowdown=15.0)
        time.sleep(12)  # the blip: three times as long as the rule would need
        slow = gateway.status()["tenants"]["acme"]["ttft_p99_ms"]
        assert slow > 100, "the blip is to be felt"
        assert alerts()["firing"] == []
        assert receiver.attempts == []
        for i in range(2):
            replicas.fault(i, clear=True)
        time.sleep(12)
        planted = time.monotonic()
        for i in range(2):
            replicas.fault(i, slowdown=15.0, refuse_share=0.5, status=500)
        wait_for("the notification", lambda: receiver.taken, timeout_s=30)
        took_s = receiver.taken[0][0] - planted
        assert took_s <= 30
        assert len(receiver.attempts) == 3, "two failures, and the one that was taken"
        assert [each["labels"]["alertname"] for each in alerts()["firing"]] == ["LatencyAndErrors"]
        time.sleep(6)
        assert len(receiver.taken) == 1
        for i in range(2):
            replicas.fault(i, clear=True)
        wait_for("its end", lambda: len(receiver.taken) == 2, timeout_s=60)
    fired, ended = (message for _, message in receiver.taken)
    print(f"told {took_s:.1f} s after the incident began")
    assert (fired["status"], ended["status"]) == ("firing", "resolved")
    assert fired["alerts"][0]["fingerprint"] == ended["alerts"][0]["fingerprint"]
    assert fired["version"] == "4"
    assert fired["commonLabels"] == {"alertname": "LatencyAndErrors", "severity": "critical", "pool": "chat"}
    time.sleep(3)
    found = alerts()
    assert found["firing"] == []
    assert [each["labels"]["alertname"] for each in found["recent"]] == ["LatencyAndErrors"]
    assert found["webhooks"]["pager"]["delivered"] == 2
    assert len(receiver.taken) == 2


def test_a_test_notification_is_delivered_and_a_dead_receiver_stalls_nobody(tmp_path: Path) -> None:
    """`Alerts` with test sends at once; where nobody listens, decisions go on and the trouble is shown."""
    with Receiver(failures=0) as receiver, Replicas(specs(1)) as replicas:
        secret = tmp_path / "secret"
        secret.write_text(SECRET)
        hooks = [
            {"name": "alive", "url": receiver.url, "secret_file": str(secret)},
            {"name": "dead", "url": "http://127.0.0.1:9/", "retry_min_ms": 50},
        ]
        pools = {"chat": {"models": ["tiny-chat"], "addresses": replicas.addresses}}
        with Gateway(pools, alerts={"webhooks": hooks}) as gateway:
            assert gateway.order("Alerts", test="")["sent_to"] == ["alive", "dead"]
            wait_for("the test", lambda: receiver.taken)
            assert receiver.taken[0][1]["commonLabels"]["alertname"] == "SteersmanTest"
            wait_for(
                "more attempts", lambda: gateway.order("Alerts")["webhooks"]["dead"].get("attempts", 0) >= 2
            )
            assert gateway.order("Alerts")["webhooks"]["dead"]["waiting"] == 1
            assert gateway.call("/generate", {"inputs": "[[sim:out=2]]"})[0] == 200
