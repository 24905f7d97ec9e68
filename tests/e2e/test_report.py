"""`steersman report` through the real Envoy: what clients saw is reported, across a restart and a kill."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from gateway import KEYS, Gateway, wait_for
from redis_harness import Redis
from replicas import Replicas, specs

from extproc.cli import group

pytestmark = pytest.mark.envoy

FLUSH_S = 0.5
PRICE = {"input_per_million": 1_000.0, "output_per_million": 3_000.0}


def steersman(gateway: Gateway, *arguments: str, code: int = 0, index: int = 0) -> Result:
    address = gateway.service_addresses[index]
    result = CliRunner().invoke(group, ["report", "--address", address, *arguments])
    assert result.exit_code == code, result.output
    return result


def lines(gateway: Gateway, *arguments: str, index: int = 0) -> dict[str, Any]:
    """The lines by their group's first name."""
    found = json.loads(steersman(gateway, "--json", *arguments, index=index).stdout)
    return {next(iter(line["group"].values())): line for line in found["lines"]}


class Seen:
    """What one tenant's client has seen."""

    def __init__(self, gateway: Gateway, tenant: str) -> None:
        self.gateway, self.tenant = gateway, tenant
        self.ok = self.refused = self.input_tokens = self.output_tokens = 0
        self.total_ms: list[float] = []

    def ask(self, model: str, tokens: int) -> None:
        """One chat, not streamed; its answer says what was counted."""
        body = {
            "model": model,
            "max_tokens": 32,
            "messages": [{"role": "user", "content": f"[[sim:out={tokens}]] hello"}],
        }
        begun = time.perf_counter()
        status, _, answer = self.gateway.call("/v1/chat/completions", body, key=KEYS[self.tenant])
        if status != 200:
            self.refused += 1
            return
        self.total_ms.append((time.perf_counter() - begun) * 1e3)
        self.ok += 1
        self.input_tokens += answer["usage"]["prompt_tokens"]
        self.output_tokens += answer["usage"]["completion_tokens"]

    def equals(self, line: dict[str, Any]) -> None:
        """The report says so too."""
        counted = (line["ok"], line["rejected"], line["input_tokens"], line["output_tokens"])
        assert counted == (self.ok, self.refused, self.input_tokens, self.output_tokens)
        cost = (self.input_tokens * 1_000.0 + self.output_tokens * 3_000.0) / 1e6
        assert line["cost"] == pytest.approx(cost)
        assert line["total_ms"]["count"] == self.ok
        # The client's clock runs before and after Envoy's.
        assert 0.0 < line["total_ms"]["max"] <= max(self.total_ms) * 1.01


def test_two_tenants_and_a_restart(tmp_path: Path) -> None:
    """Counts, tokens, cost and models are the clients' own, before and after SIGTERM and kill -9."""
    with Replicas(specs(1) + specs(1, model_id="tiny-code")) as replicas:
        pools = {
            "chat": {"models": ["tiny-chat"], "addresses": replicas.addresses[:1], "price": PRICE},
            "code": {"models": ["tiny-code"], "addresses": replicas.addresses[1:], "price": PRICE},
        }
        settings = {"dir": str(tmp_path / "kept"), "flush_s": FLUSH_S}
        with Gateway(pools, analytics=settings) as gateway:
            acme, globex = Seen(gateway, "acme"), Seen(gateway, "globex")
            for number in range(6):
                acme.ask("tiny-chat", 3 + number)
                globex.ask("tiny-code", 5)
            acme.ask("tiny-code", 4)
            acme.ask("no-such-model", 4)
            wait_for("quiet", gateway.quiet)
            found = lines(gateway)
            acme.equals(found["acme"])
            globex.equals(found["globex"])
            assert found["acme"]["served"] == {"tiny-chat": 6, "tiny-code": 1}
            assert found["acme"]["codes"] == {"model_not_found": 1}

            gateway.service.stop()
            gateway.start_service()
            wait_for("Envoy", gateway.ready)
            acme.ask("tiny-chat", 7)
            wait_for("quiet", gateway.quiet)
            acme.equals(lines(gateway)["acme"])

            for _ in range(3):
                globex.ask("tiny-code", 2)
            wait_for("quiet", gateway.quiet)
            time.sleep(2 * FLUSH_S + 0.5)
            gateway.service.kill()
            gateway.start_service()
            wait_for("Envoy", gateway.ready)
            globex.ask("tiny-chat", 2)
            wait_for("quiet", gateway.quiet)
            found = lines(gateway)
            acme.equals(found["acme"])
            globex.equals(found["globex"])

            _shapes(gateway, acme, globex, tmp_path)


def _shapes(gateway: Gateway, acme: Seen, globex: Seen, folder: Path) -> None:
    """Every way to ask gives the same figures; mistakes are exit 2 with what to write."""
    assert {name: line["ok"] for name, line in lines(gateway, "--by", "pool").items() if name} == {
        "chat": 8,
        "code": 10,
    }
    assert list(lines(gateway, "--by", "strategy,hour", "--pool", "chat")) == ["steer"]
    alone = lines(gateway, "--tenant", "globex", "--since", "today", "--by", "tenant,day")
    globex.equals(alone["globex"])

    today = datetime.now(UTC).strftime("%Y-%m-%d")
    charges = csv.DictReader(
        io.StringIO(steersman(gateway, "--chargeback", "--day", today, "--format", "csv").stdout)
    )
    rows = {(row["tenant"], row["model"]): row for row in charges}
    assert {key: int(row["requests"]) for key, row in rows.items()} == {
        ("acme", "tiny-chat"): 7,
        ("acme", "tiny-code"): 1,
        ("globex", "tiny-code"): 9,
        ("globex", "tiny-chat"): 1,
    }
    assert {row["day"] for row in rows.values()} == {today}
    for seen in (acme, globex):
        mine = [row for (tenant, _), row in rows.items() if tenant == seen.tenant]
        assert sum(int(row["output_tokens"]) for row in mine) == seen.output_tokens
        cost = (seen.input_tokens * 1_000.0 + seen.output_tokens * 3_000.0) / 1e6
        assert sum(float(row["cost"]) for row in mine) == pytest.approx(cost)
        assert all(float(row["gpu_seconds"]) > 0 for row in mine)

    steersman(gateway, "--csv", str(folder / "out.csv"))
    written = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text(encoding="utf-8"))))
    assert {row["tenant"]: int(row["ok"]) for row in written} == {"acme": acme.ok, "globex": globex.ok}
    shown = steersman(gateway, "--by", "tenant,model").stdout
    assert "acme" in shown
    assert "tiny-code" in shown
    assert "by: 'what' is none of" in steersman(gateway, "--by", "what", code=2).stderr
    assert "no time; write 24h" in steersman(gateway, "--since", "soon", code=2).stderr
    nobody = CliRunner().invoke(group, ["report", "--address", "127.0.0.1:1"])
    assert (nobody.exit_code, "is it running" in nobody.stderr) == (1, True)


def test_two_services_and_one_redis(tmp_path: Path) -> None:
    """Each counts its own; either reports both, and what a killed one had decided is counted by the other."""
    with Redis(tmp_path) as redis, Replicas(specs(2)) as replicas:
        pools = {"chat": {"models": ["tiny-chat"], "addresses": replicas.addresses, "price": PRICE}}
        with Gateway(
            pools, services=2, sharing={"redis": redis.url}, analytics={"flush_s": FLUSH_S}
        ) as gateway:
            wait_for("each other", lambda: gateway.status()["sharing"]["deciders"] == 2)
            acme = Seen(gateway, "acme")
            for _ in range(12):
                acme.ask("tiny-chat", 3)
            wait_for("quiet", gateway.quiet)

            def both() -> bool:
                return [lines(gateway, index=i)["acme"]["ok"] for i in (0, 1)] == [12, 12]

            wait_for("both services' figures", both)
            for index in (0, 1):
                acme.equals(lines(gateway, index=index)["acme"])
            writers = json.loads(steersman(gateway, "--json").stdout)["writers"]
            assert writers == 2

            # One decided by the service that is killed while it runs: nobody's, until the other claims it.
            replicas.fault(0, hang=True)
            replicas.fault(1, hang=True)
            threads = [threading.Thread(target=acme.ask, args=("tiny-chat", 3)) for _ in range(6)]
            for thread in threads:
                thread.start()
            wait_for("all placed", lambda: sum(gateway.status(i)["in_flight"] for i in (0, 1)) == 6)
            time.sleep(2 * FLUSH_S)
            gateway.services[0].kill()
            wait_for("it is missed", lambda: gateway.status(1)["sharing"]["deciders"] == 1)
            for index in (0, 1):
                replicas.fault(index, clear=True)
            for thread in threads:
                thread.join(30)
            assert acme.ok == 18
            wait_for("all 18", lambda: lines(gateway, index=1)["acme"]["ok"] == 18, timeout_s=15.0)
            acme.equals(lines(gateway, index=1)["acme"])

            redis.kill()
            acme.ask("tiny-chat", 3)
            answer = steersman(gateway, "--json", index=1)
            assert "store cannot be" in answer.stderr
            redis.start()
