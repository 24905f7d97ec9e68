"""A client that leaves while held, before its first token or in the middle: books, quotas and places."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from random import Random

import pytest
from gateway import KEYS, Gateway, wait_for
from replicas import Replicas, specs

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

#: A token costs one, and of a day's budget next to nothing comes back while a test runs.
BUDGET = 5_000
PER_TOKEN = 1_000_000
PROMPT = "x" * 400
#: Tokens of the prompt with its directive, at four bytes each.
PROMPT_TOKENS = (len(PROMPT) + len("[[sim:out=500]]")) / 4
#: A replica of half speed makes a token in about 20 ms: so many of the 500 may be under way when a client
#: leaves, on a machine that does much else.
UNDER_WAY = 300


@pytest.fixture(scope="module")
def fleet() -> Iterator[tuple[Gateway, Replicas]]:
    """One replica of one place; acme has quotas on everything, globex none."""
    quota = {
        "budget_per_day": BUDGET,
        "concurrent_requests": 2,
    }
    tenants = [
        {"name": name, "keys": [{"sha256": hash_key(key)}], **({"quota": quota} if name == "acme" else {})}
        for name, key in KEYS.items()
    ]
    with (
        Replicas(specs(1, time_scale=0.5)) as replicas,
        Gateway(
            {
                "chat": {
                    "models": ["tiny-chat"],
                    "price": {"input_per_million": PER_TOKEN, "output_per_million": PER_TOKEN},
                    "addresses": [{"address": replicas.addresses[0], "max_concurrent": 1}],
                }
            },
            tenants=tenants,
            classes=[{"name": "standard", "hold_ms": 20_000}],
        ) as gateway,
    ):
        yield gateway, replicas


class Client:
    """A stream that may be left at any time."""

    def __init__(self, gateway: Gateway, tenant: str, tokens: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
        self._answer: http.client.HTTPResponse | None = None
        self._connection.request(
            "POST",
            "/generate_stream",
            json.dumps({"inputs": f"{PROMPT}[[sim:out={tokens}]]", "parameters": {"max_new_tokens": tokens}}),
            {"content-type": "application/json", "authorization": f"Bearer {KEYS[tenant]}"},
        )

    def read(self, tokens: int) -> None:
        """Wait for so many tokens."""
        self._answer = self._answer or self._connection.getresponse()
        while tokens:
            line = self._answer.readline()
            assert line, "the stream ended"
            tokens -= line.startswith(b"data:")

    def rest(self) -> bytes:
        """What is left of the stream."""
        self._answer = self._answer or self._connection.getresponse()
        return self._answer.read()

    def leave(self) -> None:
        """Cut the connection; the response holds the socket open as well."""
        if self._answer is not None:
            self._answer.close()
        self._connection.close()


def used(gateway: Gateway, limit: str = "budget_per_day") -> float:
    """What acme's limit says is used."""
    limits = gateway.status()["use"]["tenants"]["acme"]["limits"]
    return float(next(each["used"] for each in limits if each["limit"] == limit))


def await_rest(gateway: Gateway) -> None:
    """Nobody waits, nothing is in flight, no place of the tenant's is taken."""
    wait_for("quiet", gateway.quiet)
    assert gateway.status()["held"] == 0
    assert used(gateway, "concurrent_requests") == 0


def test_who_leaves_while_held_pays_nothing_and_frees_its_place(fleet: tuple[Gateway, Replicas]) -> None:
    """Queue, concurrency and budget are as before at once; who held the replica goes on."""
    gateway, _ = fleet
    before = used(gateway)
    running = Client(gateway, "globex", 500)
    running.read(1)
    held = [Client(gateway, "acme", 500) for _ in range(2)]
    wait_for("both held", lambda: gateway.status()["held"] == 2)
    assert used(gateway) > before + 2 * PROMPT_TOKENS + 100, "prompts and predicted answers are reserved"
    assert used(gateway, "concurrent_requests") == 2
    left_before = gateway.status()["counts"].get("held.left", 0)
    for client in held:
        client.leave()
    wait_for("an empty queue", lambda: gateway.status()["held"] == 0)
    assert used(gateway, "concurrent_requests") == 0
    assert used(gateway) == pytest.approx(before, abs=1)
    status = gateway.status()
    # They left, and were not shed at the hold's end; what held the replica runs on.
    assert status["counts"]["held.left"] == left_before + 2
    assert status["in_flight"] == 1
    running.leave()
    await_rest(gateway)


def test_who_leaves_before_the_first_token_pays_the_prompt(fleet: tuple[Gateway, Replicas]) -> None:
    """The prediction of the answer is refunded, the prompt was read; who waits behind gets the place."""
    gateway, replicas = fleet
    before = used(gateway)
    replicas.fault(0, hang=True)
    client = Client(gateway, "acme", 500)
    wait_for("in flight", lambda: gateway.status()["in_flight"] == 1)
    behind = Client(gateway, "globex", 3)
    wait_for("one held", lambda: gateway.status()["held"] == 1)
    client.leave()
    wait_for("its place given on", lambda: gateway.status()["held"] == 0)
    replicas.fault(0, clear=True)
    assert b"generated_text" in behind.rest()
    behind.leave()
    await_rest(gateway)
    assert used(gateway) == pytest.approx(before + PROMPT_TOKENS, abs=8)


def test_who_leaves_in_the_middle_pays_what_was_produced(fleet: tuple[Gateway, Replicas]) -> None:
    """The prompt and the tokens until then; the rest of the reservation is refunded."""
    gateway, replicas = fleet
    before = used(gateway)
    client = Client(gateway, "acme", 500)
    client.read(40)
    client.leave()
    await_rest(gateway)
    charged = used(gateway) - before
    assert PROMPT_TOKENS + 40 - 8 <= charged <= PROMPT_TOKENS + 40 + UNDER_WAY + 8, charged
    wait_for("the engine", lambda: replicas.state(0)["running"] == 0)


def test_clients_that_leave_in_any_phase_at_once_leave_nothing_behind(
    fleet: tuple[Gateway, Replicas],
) -> None:
    """Many leave at random times, in whatever phase they are: all books are as before."""
    gateway, replicas = fleet
    before = used(gateway)
    rng = Random(1)
    clients: list[Client] = []

    def come_and_go(pause_s: float) -> None:
        client = Client(gateway, "globex", 100)
        clients.append(client)
        time.sleep(pause_s)
        client.leave()

    threads = [threading.Thread(target=come_and_go, args=(rng.uniform(0.0, 1.5),)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    await_rest(gateway)
    wait_for("the engine", lambda: replicas.state(0)["running"] == 0)
    status = gateway.status()
    assert status["open_exchanges"] == 0
    assert used(gateway) == pytest.approx(before, abs=1)
    assert gateway.call("/generate", {"inputs": "[[sim:out=2]]"}, key=KEYS["globex"])[0] == 200
    await_rest(gateway)
