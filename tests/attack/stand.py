"""What is attacked: the real Envoy, the service, engines that count, tenants of every kind, agents."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from agents_harness import telemetry, token
from gateway import Gateway, free_ports
from shaped_engine import ShapedEngine

from extproc.core.tenant import hash_key

CHAT = "/v1/chat/completions"
#: Each tenant's key is its name.
VICTIM, MALLORY, CURIOUS, SPENT, DODGER, EU = "victim", "mallory", "curious", "spent", "dodger", "eu"
#: What the dodger has bought of output tokens in an hour, and what a request of it may be above that.
DODGER_TOKENS = 400
#: What SPENT may ask in a minute.
SPENT_REQUESTS = 3
TOKENS = {"reader": "reader-token-0123456789", "other": "other-token-0123456789"}


def say(model: str = "m", **more: Any) -> dict[str, Any]:
    """A chat."""
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


class Stand:
    """A started gateway and its engines."""

    def __init__(self, gateway: Gateway, engine: ShapedEngine, outside: ShapedEngine, admin: str) -> None:
        self.gateway, self.engine, self.outside, self.admin = gateway, engine, outside, admin

    def ask(
        self, path: str, body: Any, key: str | None, *, timeout_s: float = 30.0, **headers: str
    ) -> tuple[int | str, dict[str, str], bytes]:
        """One request; in place of a status the name of what went wrong."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=timeout_s)
        try:
            connection.request("POST", path, data, sent)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__, {}, b""
        finally:
            connection.close()

    def victim(
        self, requests: int = 20, *, apart_s: float = 0.02, took_s: list[float] | None = None
    ) -> Counter[Any]:
        """What a tenant gets that minds its own business; and how long each answer took."""
        seen: Counter[Any] = Counter()
        for _ in range(requests):
            began_s = time.monotonic()
            seen[self.ask(CHAT, say(), VICTIM)[0]] += 1
            if took_s is not None:
                took_s.append(time.monotonic() - began_s)
            time.sleep(apart_s)
        return seen

    def admin_get(self, path: str, name: str) -> tuple[http.client.HTTPConnection, int]:
        """An open GET of the admin port, and its status."""
        connection = http.client.HTTPConnection(self.admin, timeout=10)
        connection.request("GET", path, headers={"authorization": f"Bearer {TOKENS[name]}"})
        return connection, connection.getresponse().status

    def counts(self, prefix: str) -> dict[str, int]:
        """The service's counts of a kind."""
        counts = self.gateway.status()["counts"]
        return {name: n for name, n in counts.items() if name.startswith(prefix) and n}


class Beside:
    """Something done again and again in threads, for as long as the `with` lasts."""

    def __init__(self, do: Any, threads: int = 2) -> None:
        self._do, self._stop = do, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            self._do()

    def __enter__(self) -> Beside:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def standing() -> Iterator[Stand]:
    """Two engines of pool `chat`, one of them outside the EU; others' models; families; failure mode open."""
    with ShapedEngine() as engine, ShapedEngine() as outside:
        inside, hidden, _, _ = engine.addresses
        admin = f"127.0.0.1:{free_ports(1)[0]}"
        hashes = {name: hashlib.sha256(each.encode()).hexdigest() for name, each in TOKENS.items()}
        nodes = telemetry(["n1", "n2"])
        nodes["nodes"][0]["networks"] = ["10.9.0.0/16", "127.0.0.0/8", "169.254.0.0/16"]
        nodes["nodes"][1]["networks"] = []
        pools = {
            "chat": {
                "models": ["m"],
                "engine": "vllm",
                "discovery": {"agents": True},
                "addresses": [
                    {"address": inside, "region": "eu"},
                    {"address": outside.addresses[0], "region": "us"},
                ],
            },
            "hidden": {"models": ["big", "bigger"], "engine": "tgi", "addresses": [hidden]},
        }
        quotas: dict[str, dict[str, int]] = {
            SPENT: {"requests_per_minute": SPENT_REQUESTS},
            DODGER: {"output_tokens_per_hour": DODGER_TOKENS},
        }
        tenants = [
            {
                "name": name,
                "keys": [{"sha256": hash_key(name)}],
                **({"quota": quotas[name]} if name in quotas else {}),
                **({"regions": ["eu"]} if name == EU else {}),
                **({"models": ["m"]} if name == CURIOUS else {}),
                **({"cache": {"mode": "on"}} if name in (VICTIM, MALLORY) else {}),
            }
            for name in (VICTIM, MALLORY, CURIOUS, SPENT, DODGER, EU)
        ]
        with Gateway(
            pools,
            gateway={"failure_mode": "open", "decision_timeout_ms": 2_000},
            families=[
                {"name": "auto", "models": ["m", "big"]},
                {"name": "large", "models": ["big", "bigger"]},
            ],
            telemetry=nodes,
            admin={
                "listen": admin,
                "auth": "token",
                "tokens": [{"name": name, "sha256": each} for name, each in hashes.items()],
            },
            tenants=tenants,
            cache={},
        ) as gateway:
            yield Stand(gateway, engine, outside, admin)


def node_token(node: str) -> str:
    """What a node's agent shows."""
    return token(node)
