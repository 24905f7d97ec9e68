"""Replicas that come and go as processes, before the real Envoy, in real time."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway import KEYS, Gateway, envoy_binary, free_ports, wait_for
from openai import OpenAI
from processes import Child

from extproc.scaling.keeper import started
from extproc.scaling.process import marked

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="what is swept up is found in /proc"),
]

WEIGHTS = Path(__file__).resolve().parents[2] / ".weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SIMULATED = [sys.executable, "-P", "-m", "extproc.cli", "sim-replica"]
MESSAGES: Any = [{"role": "user", "content": "Name three colours of the rainbow."}]


FAKE = [sys.executable, "-I", "-S", str(Path(__file__).parents[1] / "stand" / "fake_engine.py"), "{port}"]


#: The ramp: requests a second at its beginning and end, how long it takes, and how long it stays at the end.
RATE_FROM, RATE_TO, RAMP_S, TOP_S = 0.2, 2.6, 120.0, 20.0
#: Of each replica; what each request takes of one; and the first token that is aimed at.
PERMITS, TOKENS, TTFT_MS = 1, 100, 5_000


class Ramp:
    """Streams at a rate that rises: when each one's first token came, and what went wrong."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._client = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=200)
        self.firsts: list[float] = []
        self.late: list[tuple[int, int]] = []
        #: What was so each time that it was looked at: (seconds, ready, wanted, why).
        self.seen: list[tuple[float, int, int, str]] = []
        self._began_s = time.monotonic()
        self.errors: list[str] = []

    def run(self) -> int:
        """Play it; the most replicas that were ready at once."""
        began_s, due_s, most, threads = time.monotonic(), 0.0, 0, []
        while due_s < RAMP_S + TOP_S:
            while (left_s := began_s + due_s - time.monotonic()) > 0:
                most = max(most, self._ready())
                time.sleep(min(left_s, 1.0))
            threads.append(threading.Thread(target=self._ask))
            threads[-1].start()
            due_s += 1 / (RATE_FROM + (RATE_TO - RATE_FROM) * min(1.0, due_s / RAMP_S))
        for each in threads:
            each.join(200)
        return max(most, self._ready())

    def trickle(self) -> list[str]:
        """One more, for what is left of the replicas; what went wrong."""
        self._ask()
        return self.errors

    def _ready(self) -> int:
        status = self._gateway.status()
        ready = sum(each["stage"] == "ready" for each in status["launcher"]["chat"]["replicas"])
        plan = status["scaling"].get("chat", {})
        self.seen.append(
            (time.monotonic() - self._began_s, ready, plan.get("wanted", 0), plan.get("why", ""))
        )
        return ready

    def _ask(self) -> None:
        prompt: Any = [{"role": "user", "content": f"Count. [[sim:out={TOKENS}]]"}]
        began_s, first_s, tokens = time.monotonic(), None, 0
        try:
            for chunk in self._client.chat.completions.create(
                model="smollm2", messages=prompt, max_tokens=TOKENS, stream=True
            ):
                if chunk.choices and chunk.choices[0].delta.content:
                    first_s = first_s or time.monotonic() - began_s
                    tokens += 1
        except Exception as error:  # noqa: BLE001 (whatever it is, the test tells it)
            self.errors.append(f"{type(error).__name__}: {error}")
            return
        if tokens < TOKENS or first_s is None:
            self.errors.append(f"{tokens} tokens of {TOKENS} came")
            return
        self.firsts.append(first_s)
        if first_s * 1_000 > TTFT_MS:
            self.late.append((round(began_s - self._began_s), round(first_s)))


def launched(command: list[str], *, cold_hold_ms: int = 300_000, **scaling: Any) -> Gateway:
    """A gateway whose one pool has nothing but what it starts itself."""
    pool = {
        "models": ["smollm2"],
        "engine": scaling.pop("engine", "tgi"),
        "addresses": [],
        "scaling": {
            "min_replicas": 0,
            "max_replicas": 1,
            "load_time_s": 300,
            "launcher": {"command": command, "backoff_s": 0.1, "stop_timeout_s": 10},
            **scaling,
        },
    }
    return Gateway(
        {"chat": pool},
        mode="ads",
        classes=[{"name": "standard", "cold_hold_ms": cold_hold_ms, "hold_ms": 60_000}],
    )


def replicas(gateway: Gateway) -> list[dict[str, Any]]:
    """What the launcher has, as `steersman status` tells it."""
    found: list[dict[str, Any]] = gateway.status()["launcher"]["chat"]["replicas"]
    return found


def stages(gateway: Gateway) -> list[str]:
    """Of each replica."""
    return [each["stage"] for each in replicas(gateway)]


def of_service(listen: str) -> set[int]:
    """What the replicas of a service that listens there are and have started."""
    name = listen.replace(":", "_")
    return {pid for pid, mark in marked() if f"/{name}.launcher/" in mark and started(pid)}


def processes(gateway: Gateway) -> set[int]:
    """The same of a gateway's service."""
    return of_service(gateway.service_address)


def test_from_zero_to_the_first_token_with_a_real_engine() -> None:
    """llama.cpp is started by the first request, which is held meanwhile and answered like any other."""
    if not WEIGHTS.exists():
        pytest.skip("no weights: make weights")
    pytest.importorskip("xllamacpp")
    engine = [sys.executable, str(Path(__file__).with_name("engine_server.py")), str(WEIGHTS), "{port}"]
    with launched(engine, engine="llamacpp") as gateway:
        assert replicas(gateway) == []
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=400)
        began_s = time.monotonic()
        stream = client.chat.completions.create(
            model="smollm2", messages=MESSAGES, max_tokens=16, stream=True
        )
        text, first_s = "", None
        for chunk in stream:
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            first_s = first_s or time.monotonic() - began_s
        print(f"from zero to the first token in {first_s:.1f} s: {text!r}")
        assert text
        wait_for("the records", gateway.quiet)
        status = gateway.status()
        assert status["counts"]["held.cold"] == 1
        assert stages(gateway) == ["ready"]
        # A second one finds it there.
        again = client.chat.completions.create(model="smollm2", messages=MESSAGES, max_tokens=4)
        assert again.choices[0].message.content
        assert gateway.status()["counts"]["held.cold"] == 1
        gateway.service.stop()
        assert not processes(gateway), "a service that was stopped leaves no replica"


def test_who_is_not_held_is_told_when_to_come_again() -> None:
    """503, and a Retry-After that counts down to when the replica is expected."""
    with launched([*FAKE, "load=600"], cold_hold_ms=0) as gateway:
        body = {"model": "smollm2", "messages": MESSAGES}

        def told_s() -> int:
            status, headers, answer = gateway.call("/v1/chat/completions", body)
            assert (status, answer["error"]["code"]) == (503, "no_ready_endpoint")
            return int(headers["retry-after"])

        # It counts from the start of the process on, which is a moment after the question.
        first_s = told_s()
        assert first_s <= 301
        wait_for("a later answer to tell less", lambda: 0 < told_s() < first_s)
        wait_for("it loads", lambda: stages(gateway) == ["loading"])


def test_a_killed_service_leaves_its_replicas_to_its_successor() -> None:
    """A stream that runs goes on, and the next service has the same process in its pool."""
    command = [*SIMULATED, "--port", "{port}", "--model", "smollm2"]
    with launched(command) as gateway:
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=400)
        prompt: Any = [{"role": "user", "content": "Count. [[sim:out=600]]"}]
        stream = client.chat.completions.create(model="smollm2", messages=prompt, max_tokens=600, stream=True)
        chunks = iter(stream)
        next(chunks)
        before = processes(gateway)
        assert before
        gateway.service.kill()
        tokens = 1
        gateway.start_service()
        tokens += sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks)
        assert tokens >= 600, "nothing was cut"
        wait_for("it is taken over", lambda: stages(gateway) == ["ready"])
        assert processes(gateway) == before
        answer = client.chat.completions.create(model="smollm2", messages=MESSAGES, max_tokens=4)
        assert answer.choices[0].message.content
        assert gateway.status()["launcher"]["chat"]["starts"] == 0


@pytest.mark.soak
def test_one_to_four_under_a_ramp_and_back() -> None:
    """Replicas come before requests wait too long, and go again without cutting a stream."""
    command = [
        *SIMULATED,
        "--port",
        "{port}",
        "--model",
        "smollm2",
        "--max-concurrent-requests",
        str(PERMITS),
    ]
    launcher = {"command": command, "stop_timeout_s": 10, "max_concurrent": PERMITS}
    scaling = {"min_replicas": 1, "max_replicas": 4, "load_time_s": 10, "reaction_s": 0, "down_after_s": 5}
    pool = {
        "models": ["smollm2"],
        "addresses": [],
        "hardware": "NVIDIA A100-SXM4-80GB",
        "output_tokens": TOKENS,
    }
    with Gateway(
        {"chat": {**pool, "scaling": {**scaling, "launcher": launcher}}},
        mode="ads",
        classes=[{"name": "standard", "ttft_ms": TTFT_MS, "tpot_ms": 1_000, "hold_ms": 60_000}],
        scaling={"interval_s": 1, "bucket_s": 2, "simulate": False},
    ) as gateway:
        wait_for("the first", lambda: stages(gateway) == ["ready"])
        ramp = Ramp(gateway)
        # Before any request has ended, requests are taken to be longer than these, and more replicas wanted.
        assert [ramp.trickle() for _ in range(10)] == [[]] * 10
        wait_for("one, and none leaves", lambda: stages(gateway) == ["ready"], timeout_s=200)
        ramp.firsts.clear()
        most = ramp.run()
        assert most == 4, "the ramp's end needs four"
        # Who is refused for want of room has missed its target; anything else is a stream that was cut.
        refused = [error for error in ramp.errors if "overloaded" in error]
        assert len(refused) == len(ramp.errors), ramp.errors
        asked = len(ramp.firsts) + len(refused)
        attained = sum(first_s * 1_000 <= TTFT_MS for first_s in ramp.firsts) / asked
        for seen in ramp.seen[::5]:
            print(seen)
        print(ramp.late)
        print(f"{asked} requests, {len(refused)} refused, {attained:.3f} attained, at most {most} replicas")
        assert attained >= 0.95
        wait_for("one again", lambda: len(replicas(gateway)) == 1, timeout_s=400)
        assert ramp.trickle() == []


@pytest.mark.parametrize(
    "killed", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["stopped", "killed"]
)
def test_up_leaves_no_replica(tmp_path: Path, *, killed: bool) -> None:
    """Stopped, they end with it; killed, when nobody has taken them over for a minute."""
    listen, admin, service = (f"127.0.0.1:{port}" for port in free_ports(3))
    launcher = {"command": [*FAKE, "daemon"], "stop_timeout_s": 5}
    config = {
        "gateway": {"listen": listen, "envoy_admin": admin, "auth": "none"},
        "service": {"listen": [service], "drain_s": 1},
        "pools": [{"name": "chat", "models": ["m"], "scaling": {"max_replicas": 1, "launcher": launcher}}],
    }
    file = tmp_path / "steersman.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "extproc.cli",
        "up",
        "-f",
        str(file),
        "--no-table",
        "--envoy",
        envoy_binary(),
    ]
    up = Child("up", [*command, "--run-dir", str(tmp_path / "run")], tmp_path)
    up.start()
    try:
        wait_for("the engine and its daemon", lambda: len(of_service(service)) == 2, timeout_s=200)
        if killed:
            up.kill()
            assert of_service(service), "a successor would find them"
        else:
            up.stop()
        wait_for("they have ended", lambda: not of_service(service), timeout_s=200)
    finally:
        up.kill()
