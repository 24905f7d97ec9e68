"""One tenant's bodies are its own trouble: they stop nobody, and open nothing."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from gateway import KEYS, Gateway, wait_for
from replicas import Replicas, specs

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

GENERATE = {"inputs": "[[sim:out=3]]", "parameters": {"max_new_tokens": 3}}
BODY_BYTES = 4 * 1024 * 1024 - 64
VICTIMS = 40


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Two models and a family of them; open where the service is away; acme has three requests a minute."""
    with (
        Replicas([*specs(1), *specs(1, model_id="tiny-code")]) as replicas,
        Gateway(
            {
                "chat": {"models": ["tiny-chat"], "addresses": replicas.addresses[:1]},
                "code": {"models": ["tiny-code"], "addresses": replicas.addresses[1:]},
            },
            gateway={"failure_mode": "open"},
            families=[{"name": "auto", "models": ["tiny-chat", "tiny-code"]}],
            limits={"reservation_ttl_s": 5, "refused_bytes_per_minute": 16 * 1024 * 1024},
            tenants=[
                {
                    "name": "acme",
                    "keys": [{"sha256": hash_key(KEYS["acme"])}],
                    "quota": {"requests_per_minute": 3},
                },
                {"name": "globex", "keys": [{"sha256": hash_key(KEYS["globex"])}]},
                {"name": "heavy", "keys": [{"sha256": hash_key("sk-heavy")}]},
            ],
        ) as running,
    ):
        yield running


def chat(fields: bytes) -> bytes:
    return b"{" + fields + b',"messages":[{"role":"user","content":"[[sim:out=3]]"}]}'


def test_content_is_no_way_round_a_quota(gateway: Gateway) -> None:
    """Bodies that made the decision itself fail went on without one where failure_mode is open."""
    evil = [
        chat(b'"model":"auto","i\xf1puts":1'),
        chat(b'"model":"auto","max_tokens":1' + b"0" * 400),
        chat(b'"model":"auto","n":64,"max_tokens":1' + b"0" * 400),
        chat(b'"model":"tiny-chat","max_tokens":1' + b"0" * 400),
        chat(b'"model":"tiny-chat","n":64,"max_tokens":1' + b"0" * 400),
        chat(b'"model":"auto","temperature":NaN'),
        chat(b'"model":"auto","x":"\\ud800","model":"tiny-chat","model":"auto"'),
    ]
    statuses = Counter(gateway.call("/v1/chat/completions", body)[0] for body in evil * 3)
    # 422 is the engine's own word on 10^400; what is above the quota is refused here.
    assert statuses[200] + statuses[422] <= 3, statuses
    assert statuses[429] > 0
    assert set(statuses) <= {200, 400, 422, 429}
    counts = gateway.status()["counts"]
    assert not {name: n for name, n in counts.items() if name.startswith("exception.") and n}
    wait_for("everything released", gateway.quiet)


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    count = (BODY_BYTES - len(before) - len(after)) // (len(unit) + 1)
    return before + b",".join([unit] * count) + after


def test_one_tenants_bodies_stop_nobody(gateway: Gateway) -> None:
    """Three connections post 4 MiB of tiny pieces without a pause: every request of another tenant is served,
    and what was refused uses the sender's budget up."""
    bodies = [
        ("/v1/completions", filled(b'{"prompt":[', b"[]", b"]}")),
        ("/v1/chat/completions", filled(b'{"messages":[', b"{}", b"]}")),
    ]
    stop, statuses = threading.Event(), Counter[int]()

    def attack(number: int) -> None:
        while not stop.is_set():
            path, body = bodies[number % len(bodies)]
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
            headers = {"authorization": "Bearer sk-heavy", "content-type": "application/json"}
            try:
                connection.request("POST", path, body, headers)
                statuses[connection.getresponse().status] += 1
            except OSError:
                pass
            finally:
                connection.close()
            number += 1

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_for("the attack", lambda: statuses[413] >= 2, timeout_s=60)
        victims, took = Counter[int](), []
        for _ in range(VICTIMS):
            began = time.monotonic()
            victims[gateway.call("/generate", GENERATE, key=KEYS["globex"])[0]] += 1
            took.append(time.monotonic() - began)
        wait_for("the budget's end", lambda: statuses[429] > 0, timeout_s=60)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    print(json.dumps({"attacker": statuses, "victim_s": sorted(round(each, 3) for each in took)[-5:]}))
    assert victims == {200: VICTIMS}
    # Its budget of 16 MiB, and what was under way when it ended.
    assert statuses[413] <= 16
    status, headers, body = gateway.call("/generate", GENERATE, key="sk-heavy")
    assert (status, body["error_type"]) == (429, "too_many_refused")
    assert int(headers["retry-after"]) >= 1
