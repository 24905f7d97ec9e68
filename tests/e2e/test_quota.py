"""Quotas and the fair queue through the real Envoy."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from gateway import KEYS, Gateway, chat_pool, tenants, wait_for
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

GENERATE = {"inputs": "[[sim:out=3]]", "parameters": {"max_new_tokens": 9}}


def test_a_spent_quota_is_429_with_a_true_retry_after() -> None:
    """Requests a minute: the figures on success, then 429 until just the time that it says."""
    quota = {"quota": {"requests_per_minute": 30, "burst": 0.1}}  # three at once, then one in two seconds
    with (
        Replicas(specs(1)) as replicas,
        Gateway(chat_pool(replicas.addresses), tenants=tenants(acme=quota)) as gateway,
    ):
        answers = [gateway.call("/generate", GENERATE)]
        while answers[-1][0] == 200:
            answers.append(gateway.call("/generate", GENERATE))
        assert answers[-1][0] == 429
        assert len(answers) >= 4
        left = [int(headers["x-ratelimit-remaining-requests"]) for _, headers, _ in answers]
        # As many as are left fewer each time, but for what came back meanwhile.
        assert (left[0], left[-1]) == (2, 0)
        assert answers[0][1]["x-ratelimit-limit-requests"] == "30"
        _, headers, body = answers[-1]
        assert body["error_type"] == "quota_exceeded"
        assert "requests_per_minute" in body["error"]
        assert gateway.call("/generate", GENERATE, key=KEYS["globex"])[0] == 200, "the neighbour is not hit"
        time.sleep(int(headers["retry-after"]))
        assert gateway.call("/generate", GENERATE)[0] == 200


def test_output_tokens_are_charged_as_they_came() -> None:
    """What was predicted and not produced is refunded; what was produced counts."""
    quota = {"quota": {"output_tokens_per_minute": 1_000}}
    body = {"inputs": "[[sim:out=100]]", "parameters": {"max_new_tokens": 900}}
    with (
        Replicas(specs(1)) as replicas,
        Gateway(chat_pool(replicas.addresses), tenants=tenants(acme=quota)) as gateway,
    ):
        began_s = time.monotonic()
        for _ in range(3):
            status, _, answer = gateway.call("/generate", body)
            assert status == 200, answer
            wait_for("the record", gateway.quiet)
        _, headers, _ = gateway.call("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 1}})
        came_back = (time.monotonic() - began_s) * 1_000 / 60
        assert 680 <= int(headers["x-ratelimit-remaining-tokens"]) <= 700 + came_back


def test_a_full_fleet_holds_and_releases_in_turn() -> None:
    """With one permit five requests come: none fails, they go one after the other."""
    with (
        Replicas(specs(1, max_concurrent_requests=1)) as replicas,
        Gateway(chat_pool(replicas.addresses, endpoint={"max_concurrent": 1})) as gateway,
    ):
        results: list[int] = []
        body = {"inputs": "[[sim:out=40]]", "parameters": {"max_new_tokens": 40}}
        threads = [
            threading.Thread(target=lambda: results.append(gateway.call("/generate", body)[0]))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results == [200] * 5
        wait_for("quiet", gateway.quiet)
        counts = gateway.status()["counts"]
        assert counts["held"] >= 3
        assert counts["released"] == counts["held"]


def test_a_hold_ends_in_429_and_a_leaving_client_frees_its_place() -> None:
    """Past the class's hold it is shed with Retry-After; who leaves while held is gone at once."""
    classes = [{"name": "standard", "hold_ms": 1_000}]
    with (
        Replicas(specs(1, max_concurrent_requests=1)) as replicas,
        Gateway(chat_pool(replicas.addresses, endpoint={"max_concurrent": 1}), classes=classes) as gateway,
    ):
        replicas.fault(0, hang=True)
        first = threading.Thread(target=gateway.call, args=("/generate", GENERATE))
        first.start()
        wait_for("the first in flight", lambda: gateway.status()["in_flight"] == 1)
        began = time.monotonic()
        status, headers, body = gateway.call("/v1/completions", {"prompt": "x", "model": "tiny-chat"})
        waited_s = time.monotonic() - began
        assert (status, body["error"]["code"]) == (429, "overloaded")
        assert waited_s > 0.9
        assert int(headers["retry-after"]) >= 1

        def left() -> bool:
            with contextlib.suppress(OSError):  # a time-out of the client, whatever its class
                gateway.call("/generate", GENERATE, timeout_s=0.3)
            return bool(gateway.status()["counts"].get("held.left"))

        # On a busy machine it may leave before it is held.
        wait_for("its leaving", left)
        replicas.fault(0, clear=True)
        first.join(20)
        wait_for("quiet", gateway.quiet)


def test_a_noisy_neighbour_waits_for_itself() -> None:
    """A tenant that floods a full replica waits in its own line; the other's requests pass it by."""
    with (
        Replicas(specs(1, max_concurrent_requests=2)) as replicas,
        Gateway(
            chat_pool(replicas.addresses, endpoint={"max_concurrent": 2}),
            classes=[{"name": "standard", "hold_ms": 120_000}],
        ) as g,
    ):
        body = {"inputs": "[[sim:out=30]]", "parameters": {"max_new_tokens": 30}}
        #: Whose request ended, in the order of their ends, and how.
        ended: list[tuple[str, int, Any]] = []

        def send(tenant: str) -> None:
            status, _, answer = g.call("/generate", body, key=KEYS[tenant], timeout_s=150)
            ended.append((tenant, status, answer))

        def sent(tenant: str, count: int, held: int) -> list[threading.Thread]:
            threads = [threading.Thread(target=send, args=(tenant,)) for _ in range(count)]
            for thread in threads:
                thread.start()
            wait_for("all wait", lambda: g.status()["counts"].get("held", 0) == held)
            return threads

        # Nothing ends before all have come.
        replicas.fault(0, hang=True)
        threads = sent("acme", 30, 28) + sent("globex", 3, 31)
        replicas.fault(0, hang=False)
        for thread in threads:
            thread.join(150)
        assert {status for _, status, _ in ended} == {200}, ended
        places = [place for place, (tenant, _, _) in enumerate(ended) if tenant == "globex"]
        assert len(ended) == 33
        # Two have begun before it came; then every second place is its own.
        assert max(places) < 12, places
