"""The metrics of a real service behind the real Envoy: what was sent is what is counted."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gateway import KEYS, Gateway, free_ports, wait_for
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from replicas import Replicas, specs

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

OPEN = "application/openmetrics-text; version=1.0.0"
WHOLE, STREAMED, TOKENS, SPENT = 12, 6, 20, 3
#: A tenant that may ask once a minute.
POOR, POOR_KEY = "poor", "sk-test-poor"


class Scrape:
    """One exposition, read back."""

    def __init__(self, url: str, accept: str = "") -> None:
        request = urllib.request.Request(f"{url}/metrics", headers={"accept": accept} if accept else {})
        with urllib.request.urlopen(request, timeout=10) as answer:
            self.content_type, text = answer.headers["content-type"], answer.read().decode()
        parse = parse_open if "openmetrics" in self.content_type else parse_plain
        self.samples = [sample for metric in parse(text) for sample in metric.samples]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these label values."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"steersman_{name}" and labels.items() <= sample.labels.items()
        ]
        assert found or name.endswith("_total") or not labels, (name, labels)
        return sum(found)

    def counters(self) -> dict[tuple[Any, ...], float]:
        """What may never go back."""
        endings = ("_total", "_bucket", "_count", "_sum")
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for sample in self.samples
            if sample.name.startswith("steersman_") and sample.name.endswith(endings)
        }


def chat(tokens: int = TOKENS, **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": f"[[sim:out={tokens}]]"}],
        "max_tokens": tokens,
        **more,
    }


def leave_early(gateway: Gateway) -> None:
    """Begin a long stream and hang up after its first token."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['globex']}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(chat(2_000, stream=True)), headers)
    answer = connection.getresponse()
    answer.readline()
    answer.close()
    connection.close()


def traffic(gateway: Gateway) -> None:
    """Whole answers and streams, refusals of each kind, and a client that leaves."""

    def ask(number: int) -> int:
        more = {"stream": True, "stream_options": {"include_usage": True}} if number >= WHOLE else {}
        return gateway.call("/v1/chat/completions", chat(**more))[0]

    with ThreadPoolExecutor(4) as threads:
        answers: Iterable[int] = threads.map(ask, range(WHOLE + STREAMED))
        assert list(answers) == [200] * (WHOLE + STREAMED)
    leave_early(gateway)
    poor = [gateway.call("/v1/chat/completions", chat(), key=POOR_KEY)[0] for _ in range(1 + SPENT)]
    assert poor == [200] + [429] * SPENT
    assert gateway.call("/v1/chat/completions", chat(), key="sk-of-nobody")[0] == 401
    assert gateway.call("/v1/chat/completions", {**chat(), "model": "no-such"})[0] == 404
    assert gateway.call("/v1/chat/completions", b"{")[0] == 400


def test_the_figures_are_what_was_sent() -> None:
    """Requests, tokens, money, refusals, times and decisions of real traffic; counters never go back."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    tenants = [{"name": name, "keys": [{"sha256": hash_key(key)}]} for name, key in KEYS.items()]
    tenants.append(
        {
            "name": POOR,
            "keys": [{"sha256": hash_key(POOR_KEY)}],
            "quota": {"requests_per_minute": 1},
        }
    )
    pool = {"models": ["tiny-chat"], "price": {"input_per_million": 1_000, "output_per_million": 5_000}}
    with Replicas(specs(2)) as replicas:
        pools = {"chat": {**pool, "addresses": replicas.addresses}}
        with Gateway(pools, tenants=tenants, admin={"listen": f"127.0.0.1:{port}"}) as gateway:
            before = Scrape(url)
            assert before.sum("pool_endpoints", pool="chat", ready="yes") == 2
            assert before.sum("requests_total") == 0
            traffic(gateway)
            wait_for("the records", lambda: Scrape(url).sum("requests_total") == WHOLE + STREAMED + 2)
            seen = Scrape(url, OPEN)
            ours = {"pool": "chat", "class": "standard"}
            assert seen.content_type.startswith("application/openmetrics-text")
            assert seen.sum("requests_total", tenant="acme", outcome="ok", **ours) == WHOLE + STREAMED
            assert seen.sum("requests_total", tenant="globex", outcome="client_gone", **ours) == 1
            assert seen.sum("requests_total", tenant=POOR, outcome="ok", **ours) == 1
            assert seen.sum("requests_total", outcome="error") == 0
            output = seen.sum("tokens_total", tenant="acme", direction="output")
            prompt = seen.sum("tokens_total", tenant="acme", direction="input")
            assert output == (WHOLE + STREAMED) * TOKENS
            assert prompt > 0
            cost = (prompt * 1_000 + output * 5_000) / 1e6
            assert seen.sum("cost_total", tenant="acme") == pytest.approx(cost)
            assert 0 < seen.sum("gpu_seconds_total", tenant="acme") < 60
            assert seen.sum("refusals_total", tenant=POOR, code="quota_exceeded") == SPENT
            assert seen.sum("refusals_total", tenant="(none)") == 1
            assert seen.sum("refusals_total", tenant="acme", code="model_not_found") == 1
            assert seen.sum("refusals_total") == SPENT + 3
            assert seen.sum("decisions_total", pool="chat", degraded="no") == WHOLE + STREAMED + 2
            # A stream that its client left has a first token too, and no end.
            first = seen.sum("ttft_seconds_count", **ours)
            assert STREAMED <= first <= STREAMED + 1
            # It says something where its first token was seen; the spent quota says nothing.
            assert seen.sum("slo_requests_total") == WHOLE + first + 1
            assert seen.sum("tpot_seconds_count", **ours) == STREAMED
            assert seen.sum("request_seconds_count", **ours) == WHOLE + STREAMED + 1
            assert seen.sum("hold_seconds_count", **ours) == WHOLE + STREAMED + 2
            assert seen.sum("decision_seconds_count") >= WHOLE + STREAMED + 2
            assert seen.sum("quota_used_ratio", tenant=POOR, limit="requests_per_minute") > 0.5
            assert seen.sum("in_flight") == seen.sum("held") == 0
            assert seen.sum("event_loop_lag_seconds_count") > 0
            after = seen.counters()
            assert not [key for key, value in before.counters().items() if after[key] < value]
            first_token = seen.sum("events_total", event="first_token")
            assert first_token == gateway.status()["counts"]["first_token"]


def test_each_service_counts_its_own() -> None:
    """Two services hear of every record; together they count each request once."""
    ports = free_ports(2)
    with Replicas(specs(2)) as replicas:
        pools = {"chat": {"models": ["tiny-chat"], "addresses": replicas.addresses}}
        gateway = Gateway(pools, services=2)
        gateway.write_config = lambda: write_apart(gateway, ports)  # type: ignore[method-assign]  # per service
        gateway.write_config()
        with gateway:
            asked = 0
            deadline = time.monotonic() + 60
            while asked < 30 and time.monotonic() < deadline:
                assert gateway.call("/v1/chat/completions", chat(4))[0] == 200
                asked += 1

            def counted() -> list[float]:
                return [
                    Scrape(f"http://127.0.0.1:{port}").sum("requests_total", outcome="ok") for port in ports
                ]

            wait_for("all records", lambda: sum(counted()) >= asked)
            assert sum(counted()) == asked
            assert all(counted()), "each has decided on some"


def write_apart(gateway: Gateway, ports: list[int]) -> None:
    """Each service has an admin port of its own."""
    import yaml

    for file, address, port in zip(gateway.config_files, gateway.service_addresses, ports, strict=True):
        config = {
            **gateway.config,
            "service": {**gateway.config["service"], "listen": [address]},
            "admin": {"listen": f"127.0.0.1:{port}"},
        }
        file.write_text(yaml.safe_dump(config))
