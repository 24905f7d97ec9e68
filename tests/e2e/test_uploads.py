"""Uploads of sound that meet a replica in trouble, or none with room: what is sent again, and what waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2 as httpx
import pytest
from gateway import KEYS, Gateway, tenants, wait_for
from scripted_engine import LOST, Script, ScriptedEngine, SeenRequest

pytestmark = pytest.mark.envoy

TEXT = {"text": "Ahoy", "usage": {"type": "tokens", "input_tokens": 40, "output_tokens": 3}}
#: From less than Envoy's buffer for a connection (64 KiB) to the largest upload.
SIZES = [2_000, 60_000, 80_000, 130_000, 1_000_000, 24_000_000]
#: The largest that Envoy keeps for another try here, and sizes up to it.
KEPT_MAX = 6 * 1024 * 1024
KEPT = [2_000, 60_000, 80_000, 130_000, 1_000_000, 6_000_000]


class Fleet:
    """A gateway before two replicas, each with two places, of which a test says how they answer."""

    def __init__(self, gateway: Gateway, replicas: list[ScriptedEngine]) -> None:
        self.gateway, self.replicas = gateway, replicas

    @property
    def seen(self) -> list[SeenRequest]:
        return [each for replica in self.replicas for each in replica.seen]

    def upload(self, size: int, key: str = KEYS["acme"]) -> tuple[bytes, httpx.Response]:
        """One sound of so many bytes, after the model's name: the form as it was sent, and its answer."""
        with httpx.Client(timeout=60) as client:
            request = client.build_request(
                "POST",
                f"{self.gateway.url}/v1/audio/transcriptions",
                data={"model": "tiny-chat"},
                files={"file": ("a.wav", b"".join(b"%015d\n" % at for at in range(size // 16)), "audio/wav")},
                headers={"authorization": f"Bearer {key}"},
            )
            return request.read(), client.send(request)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        replicas = [stack.enter_context(ScriptedEngine(lambda _: Script(TEXT))) for _ in range(2)]
        listed = [{"address": each.address, "max_concurrent": 2} for each in replicas]
        pools = {"chat": {"models": ["tiny-chat"], "engine": "vllm", "addresses": listed}}
        people = tenants(globex={"quota": {"input_tokens_per_hour": 100}})
        classes = [{"name": "standard", "hold_ms": 30_000}]
        gateway = Gateway(
            pools,
            tenants=people,
            classes=classes,
            probes={"enabled": False},
            gateway={"upload_kept_bytes_max": KEPT_MAX},
        )
        yield Fleet(stack.enter_context(gateway), replicas)


@pytest.fixture(autouse=True)
def _fresh(fleet: Fleet) -> Iterator[None]:
    for each in fleet.replicas:
        each.seen.clear()
        each.answer = lambda _: Script(TEXT)
        fleet.gateway.order("ClearFaults", address=each.address)
    yield
    wait_for("quiet", fleet.gateway.quiet)


@pytest.mark.parametrize("size", SIZES)
def test_an_upload_arrives_to_the_byte(fleet: Fleet, size: int) -> None:
    """Whatever of it the service has seen before it was sent on."""
    for _ in range(4):
        sent, answer = fleet.upload(size)
        assert (answer.status_code, answer.json()["text"]) == (200, "Ahoy")
        assert [each.body for each in fleet.seen] == [sent]
        for each in fleet.replicas:
            each.seen.clear()


#: How a replica fails that has read all of an upload.
TROUBLE = {"503": Script({"error": "not now"}, 503), "reset": Script(status=LOST)}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("size", KEPT)
def test_an_upload_that_is_kept_is_sent_to_the_next_replica(fleet: Fleet, size: int, trouble: str) -> None:
    """Whoever is asked first fails; the other gets the same form, to the byte, and answers."""
    failed: list[SeenRequest] = []

    def once(request: SeenRequest) -> Script:
        if not failed:
            failed.append(request)
            return TROUBLE[trouble]
        return Script(TEXT)

    for each in fleet.replicas:
        each.answer = once
    sent, answer = fleet.upload(size)
    assert (answer.status_code, answer.json()["text"]) == (200, "Ahoy")
    assert [each.body == sent for each in fleet.seen] == [True, True]
    assert [len(each.seen) for each in fleet.replicas] == [1, 1]


def test_a_larger_upload_is_not_sent_again(fleet: Fleet) -> None:
    """Envoy could not send it as it was: the replica's own answer is the client's."""
    for each in fleet.replicas:
        each.answer = lambda _: TROUBLE["503"]
    sent, answer = fleet.upload(KEPT_MAX + 1_000_000)
    assert (answer.status_code, answer.json()) == (503, {"error": "not now"})
    assert [each.body == sent for each in fleet.seen] == [True]


def test_an_upload_waits_for_a_place(fleet: Fleet) -> None:
    """While both are taken it is held here, and goes on whole when one is free."""
    for each in fleet.replicas:
        each.open.clear()
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(fleet.upload(2_000)[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for("four of them", lambda: len(fleet.seen) == 4)
        threads.append(threading.Thread(target=lambda: answers.append(fleet.upload(1_000_000)[1])))
        threads[-1].start()
        wait_for("one that is held", lambda: fleet.gateway.status()["held"] == 1)
        assert len(fleet.seen) == 4
    finally:
        for each in fleet.replicas:
            each.open.set()
        for thread in threads:
            thread.join(60)
    assert [each.status_code for each in answers] == [200] * 5
    assert max(len(each.body) for each in fleet.seen) > 999_000


def test_uploads_spend_a_tenants_tokens(fleet: Fleet) -> None:
    """The engine's own usage is charged, 40 of 100 an hour: a third is refused before it is sent."""
    key = KEYS["globex"]
    for _ in range(2):
        assert fleet.upload(2_000, key)[1].status_code == 200
        wait_for("its record", fleet.gateway.quiet)
    _, told = fleet.upload(10_000, key)
    assert (told.status_code, told.json()["error"]["code"]) == (429, "quota_exceeded")
    assert int(told.headers["retry-after"]) >= 1
    assert 19 <= int(told.headers["x-ratelimit-remaining-tokens"]) <= 21
    assert len(fleet.seen) == 2
