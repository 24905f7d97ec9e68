"""First-token events: they come at once, of streams alone, and no stream ever waits for them."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from gateway import KEYS, Gateway, chat_pool, wait_for
from replicas import Replicas, specs

from extproc.control import filters
from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

STREAMS = 40
TOKENS = 60
#: Enough that two services have some each.
REQUESTS = 24


@dataclass
class Stream:
    """What a client saw: what the events said."""

    events: list[Any] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return bool(self.events) and bool(self.events[-1].get("generated_text"))


def stream(gateway: Gateway, tokens: int = TOKENS, *, on_first: Callable[[], None] = lambda: None) -> Stream:
    """Read one stream to its end."""
    seen = Stream()
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    body = json.dumps({"inputs": f"[[sim:out={tokens}]]", "parameters": {"max_new_tokens": tokens}})
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['acme']}"}
    try:
        connection.request("POST", "/generate_stream", body, headers)
        answer = connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data:"):
                seen.events.append(json.loads(line.removeprefix(b"data:")))
                if len(seen.events) == 1:
                    on_first()
    except (OSError, http.client.HTTPException, ValueError):
        seen.events.append({})  # broken: not whole
    finally:
        connection.close()
    return seen


def events(gateway: Gateway, kind: str = "first_token", service: int = 0) -> int:
    count: int = gateway.status(service)["counts"].get(f"events.{kind}", 0)
    return count


def test_the_event_comes_with_the_first_chunk() -> None:
    """It is counted while the stream still runs, and not by its record; whole answers have none."""
    with Replicas(specs(1, time_scale=1.0)) as replicas, Gateway(chat_pool(replicas.addresses)) as gateway:

        def counted() -> None:
            replicas.fault(0, hang=True)  # it cannot end before we have looked
            wait_for("the event", lambda: events(gateway) == 1)
            status = gateway.status()
            assert status["in_flight"] == 1
            # Of a short stream the record may come first.
            assert "events.unknown" not in status["counts"]
            replicas.fault(0, clear=True)

        assert stream(gateway, 300, on_first=counted).whole
        assert all(stream(gateway, 5).whole for _ in range(2))
        wait_for("all events", lambda: events(gateway) == 3)
        for path in ("/generate", "/v1/chat/completions"):
            body = {"inputs": "[[sim:out=2]]", "messages": [{"role": "user", "content": "[[sim:out=2]]"}]}
            assert gateway.call(path, {**body, "model": "tiny-chat", "max_tokens": 2})[0] == 200
        counts = gateway.status()["counts"]
        assert counts["events.first_token"] == 3
        assert "events.refused" not in counts
        assert not [name for name in counts if name.startswith("exception.")]


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_do_not_notice_a_service_that_is_gone(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decided, then the service is killed or hangs, then the first tokens come: all streams come whole, while
    their events wait for the service longer than this test does."""
    monkeypatch.setattr(filters, "EVENT_TIMEOUT_MS", 300_000)
    with Replicas(specs(2, time_scale=0.5)) as replicas, Gateway(chat_pool(replicas.addresses)) as gateway:
        for i in range(2):
            replicas.fault(i, hang=True)
        with ThreadPoolExecutor(STREAMS) as threads:
            running = [threads.submit(stream, gateway) for _ in range(STREAMS)]
            wait_for("all in flight", lambda: gateway.status()["in_flight"] == STREAMS)
            assert events(gateway) == 0
            gateway.service.signal(number)
            for i in range(2):
                replicas.fault(i, hang=False)
            seen = [each.result(60) for each in running]
        assert [len(each.events) for each in seen] == [TOKENS] * STREAMS
        assert all(each.whole for each in seen)
        if number is signal.SIGKILL:
            gateway.service.kill()
            gateway.start_service()
        else:
            gateway.service.signal(signal.SIGCONT)
        wait_for("quiet", gateway.quiet)
        wait_for("decisions again", lambda: stream(gateway, 5).whole)
        wait_for("events again", lambda: events(gateway) > 0)


def test_a_refusal_inside_a_200_is_told() -> None:
    """Neither retried nor charged: the event says it at once, the record at the end."""
    tenant = {
        "name": "acme",
        "keys": [{"sha256": hash_key(KEYS["acme"])}],
        "quota": {"input_tokens_per_hour": 36_000, "output_tokens_per_hour": 36_000},
    }
    with (
        Replicas(specs(1)) as replicas,
        Gateway(chat_pool(replicas.addresses), tenants=[tenant]) as gateway,
    ):
        replicas.fault(0, refuse=True)
        refused = stream(gateway, 20)
        assert refused.events[0]["error_type"] == "overloaded"
        wait_for("the event", lambda: events(gateway, "refused") == 1)
        wait_for("quiet", gateway.quiet)
        ended = gateway.status()["tenants"]["acme"]
        assert (ended["refused"], ended["ok"], ended["output_tokens"]) == (1, 0, 0)
        assert ended["ttft_p50_ms"] is None
        used = gateway.status()["use"]["tenants"]["acme"]["limits"]
        assert [each["used"] for each in used] == [0.0, 0.0], used
        replicas.fault(0, refuse=False)
        assert stream(gateway, 5).whole
        wait_for("the good one's event", lambda: events(gateway) == 2)
        assert events(gateway, "refused") == 1


def test_a_retried_stream_counts_where_it_is_served() -> None:
    """The event says who answers; a stream as short as these has no heartbeat that would say it."""
    with Replicas(specs(2, time_scale=1.0)) as replicas:
        pool = chat_pool(replicas.addresses, strategy="round_robin")
        with Gateway(pool, probes={"enabled": False}) as gateway:
            assert all(stream(gateway, 5).whole for _ in range(4))
            wait_for("quiet", gateway.quiet)
            assert "moved" not in gateway.status()["counts"]
            replicas.fault(0, refuse_share=1.0, status=503)

            def moved() -> bool:
                assert stream(gateway, 5).whole
                return bool(gateway.status()["counts"].get("moved"))

            wait_for("a stream that goes on elsewhere", moved)
            wait_for("quiet", gateway.quiet)


def test_only_the_service_that_decided_is_told() -> None:
    """Two services decide side by side; each gets the events of its own requests, and knows them all."""
    with (
        Replicas(specs(2, time_scale=1.0)) as replicas,
        Gateway(chat_pool(replicas.addresses), services=2) as gateway,
        ThreadPoolExecutor(8) as threads,
    ):
        streams = [threads.submit(stream, gateway, 30) for _ in range(REQUESTS)]
        assert all(each.result(60).whole for each in streams)
        for i in range(2):
            # A busy machine may lose one: nobody waits for an event longer than 250 ms.
            wait_for("events", lambda i=i: events(gateway, service=i))
            counts = gateway.status(i)["counts"]
            assert 0 < counts["events.first_token"] <= counts["routed"]
            # One that is later than its stream's end is not known any more; another's would be half of them.
            assert counts.get("events.unknown", 0) < counts["events.first_token"] / 2
