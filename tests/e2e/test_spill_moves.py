"""Who waits at home goes on to the provider once it has waited too long, through the real Envoy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from gateway import KEYS, wait_for
from scripted_engine import ScriptedEngine
from spill_site import OWN_KEY, PROVIDER_KEY, SpillSite, answer, body_at, posts, two_pools

pytestmark = pytest.mark.envoy

Site = SpillSite[ScriptedEngine]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with two_pools(tmp_path_factory.mktemp("keys"), "static", places=1) as found:
        yield found


@pytest.fixture
def site(place: Site) -> Site:
    place.own.answer = place.paid.answer = answer
    return place


@contextlib.contextmanager
def both_full(site: Site) -> Iterator[threading.Event]:
    """Home and the provider have one request each; the provider's ends when the event is set."""
    before = len(posts(site.paid))
    with site.full():
        site.paid.open.clear()
        there = threading.Thread(target=site.ask)
        there.start()
        try:
            wait_for("a full provider", lambda: len(posts(site.paid)) == before + 1)
            yield site.paid.open
        finally:
            site.paid.open.set()
            there.join()


def moved(site: Site, ask: Callable[[], Any]) -> Any:
    """What is answered that waits at home, which stays full, until the provider has room."""
    before, home = site.spill()["moved"]["little"], len(posts(site.own))
    found: list[Any] = []
    with both_full(site) as room:
        waiting = threading.Thread(target=lambda: found.append(ask()))
        waiting.start()
        wait_for("a held request", lambda: site.gateway.status()["held"] == 1)
        room.set()
        waiting.join()
        assert len(posts(site.own)) == home + 1  # who takes the place
        assert site.spill()["moved"]["little"] == before + 1
    return found[0]


def test_who_waits_is_served_there(site: Site) -> None:
    """Under the name that its model has there, its body else to the letter, charged once by that price."""
    text = 'named "model": "small" \u2603 ' + "x" * 3_000_000
    messages = [{"role": "user", "content": text}]
    spent, tokens = site.spill()["spent"]["little"], site.gateway.tenant("acme")["output_tokens"]
    status, told, body = moved(site, lambda: site.ask(messages=messages, seed=12345678901234567890))
    assert (status, body["model"]) == (200, "gpt-large")
    assert (told["x-steersman-spilled"], told["x-steersman-model"]) == ("load", "gpt-large")
    sent = posts(site.paid)[-1]
    assert body_at(sent)["model"] == "gpt-large"
    assert (sent.json["messages"], sent.json["seed"]) == (messages, 12345678901234567890)
    assert sent.path == "/openai/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert not any(key in repr(site.paid.seen) for key in (OWN_KEY, KEYS["acme"]))
    # Two were served there: the one that filled it, and this one.
    wait_for("both ends", lambda: site.gateway.tenant("acme")["output_tokens"] == tokens + 6)
    price = (7 * 100_000 + 3 * 200_000) / 1e6
    assert site.spill()["spent"]["little"] == pytest.approx(spent + 2 * price)
    assert site.spill()["under_way"] == 0


def test_a_stream_of_who_waits(site: Site) -> None:
    """By the official client, with the usage that it asked for."""
    client = openai.OpenAI(base_url=f"{site.gateway.url}/v1", api_key=KEYS["acme"], max_retries=0)

    def ask() -> list[Any]:
        return list(
            client.chat.completions.create(
                model="small",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=50,
                stream=True,
                stream_options={"include_usage": True},
            )
        )

    events = moved(site, ask)
    assert "".join(each.choices[0].delta.content or "" for each in events if each.choices) == "a b c "
    assert events[-1].usage.completion_tokens == 3
    assert {each.model for each in events} == {"gpt-large"}


def test_who_does_not_allow_it_waits_on(site: Site) -> None:
    """Its prompt leaves for no provider that has room."""
    found: list[Any] = []
    with both_full(site) as room:
        waiting = threading.Thread(target=lambda: found.append(site.ask(key=KEYS["globex"])))
        waiting.start()
        wait_for("a held request", lambda: site.gateway.status()["held"] == 1)
        sent = len(posts(site.paid))
        room.set()
        # Who may go does.
        assert site.ask()[1]["x-steersman-spilled"] == "load"
        assert site.gateway.status()["held"] == 1
        assert len(posts(site.paid)) == sent + 1
    waiting.join()
    assert (found[0][0], found[0][2]["model"]) == (200, "small")
