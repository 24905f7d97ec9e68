"""What a provider refuses or fails is tried at home in the same request, through the real Envoy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway import KEYS, wait_for
from scripted_engine import Script, ScriptedEngine, SeenRequest
from spill_site import OWN_KEY, PROVIDER_KEY, SpillSite, answer, body_at, posts, refusal, two_pools

pytestmark = pytest.mark.envoy

Site = SpillSite[ScriptedEngine]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with two_pools(tmp_path_factory.mktemp("keys"), "static") as found:
        yield found


@pytest.fixture
def site(place: Site) -> Site:
    place.own.answer = place.paid.answer = answer
    # After a refusal it is left alone for a while.
    wait_for("the provider", lambda: place.spill()["open"].get("paid", True))
    return place


def served_at_home(site: Site, ask: Any) -> Any:
    """What is answered while the own place is taken, which takes one more for want of another."""
    found: list[Any] = []
    before = len(posts(site.own))
    with site.full():
        asking = threading.Thread(target=lambda: found.append(ask()))
        asking.start()
        # The one that fills the place, and this one.
        wait_for("the try at home", lambda: len(posts(site.own)) == before + 2)
    asking.join()
    return found[0]


def test_a_refusal_is_tried_at_home_under_its_own_name(site: Site) -> None:
    """It is charged once, by who has served it, and the provider is left alone."""
    before = site.spill()["spent"]["little"]
    tokens = site.gateway.tenant("acme")["output_tokens"]
    tried_in_its_own_way(site)
    wait_for("its end", lambda: site.gateway.tenant("acme")["output_tokens"] == tokens + 3)
    assert site.spill()["spent"]["little"] == before
    assert site.spill()["returned"]["little"] > 0
    assert not site.spill()["open"]["paid"]


def test_where_the_service_tells_the_keys_as_well(tmp_path: Path) -> None:
    """The same over ADS."""
    with two_pools(tmp_path, "ads") as site:
        tried_in_its_own_way(site)


def tried_in_its_own_way(site: Site) -> None:
    """One request and one answer, of the own model; neither pool sees the other's key, path, header or name,
    and the rest of the body is the client's to the letter."""
    site.paid.answer = lambda _: refusal(429, {"retry-after": "2"})
    text = 'named "model": "gpt-large" \u2603 ' + "x" * 3_000_000
    messages = [{"role": "user", "content": text}]
    more: dict[str, Any] = {
        "seed": 12345678901234567890,
        "messages": messages,
        "metadata": {"model": "gpt-large"},
    }
    status, told, body = served_at_home(site, lambda: site.ask(**more))
    assert (status, body["model"]) == (200, "small")
    assert "x-steersman-spilled" not in told
    assert told["x-steersman-model"] == "small"
    there, home = posts(site.paid)[-1], posts(site.own)[-1]
    assert (body_at(there)["model"], body_at(home)["model"]) == ("gpt-large", "small")
    assert body_at(home) == {**body_at(there), "model": "small"}
    assert home.json["messages"] == messages
    assert (there.path, home.path) == ("/openai/v1/chat/completions", "/engine/v1/chat/completions")
    assert (there.headers["authorization"], home.headers["x-api-key"]) == (f"Bearer {PROVIDER_KEY}", OWN_KEY)
    assert (there.headers["x-project"], home.headers["x-rack"]) == ("ours", 'seven "7"')
    assert not {"x-api-key", "x-rack"} & set(there.headers)
    assert not {"authorization", "x-project"} & set(home.headers)
    assert not [name for each in (there, home) for name in each.headers if name.startswith("x-steersman")]
    assert PROVIDER_KEY not in repr(site.own.seen)
    assert not any(key in repr(site.paid.seen) for key in (OWN_KEY, KEYS["acme"]))


def test_a_stream_is_tried_at_home(site: Site) -> None:
    """By the official client: all its events are the own model's, with the usage that it asked for."""
    site.paid.answer = lambda _: refusal(401)
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

    events = served_at_home(site, ask)
    assert "".join(each.choices[0].delta.content or "" for each in events if each.choices) == "a b c "
    assert events[-1].usage.completion_tokens == 3
    assert {each.model for each in events} == {"small"}


def test_what_both_refuse_is_the_own_engines_answer(site: Site) -> None:
    """The last answer is the client's, and it is not told to ask again at once."""
    site.paid.answer = lambda _: refusal(529)

    def own(request: SeenRequest) -> Script:
        refuses = request.method == "POST" and request.json.get("seed")
        return refusal(503, {"retry-after": "7"}) if refuses else answer(request)

    site.own.answer = own
    status, told, _ = served_at_home(site, lambda: site.ask(seed=1))
    assert (status, told.get("retry-after")) == (503, "7")


def test_a_wise_answer_goes_nowhere_else(site: Site) -> None:
    """What the provider serves, or calls wrong, is the client's."""
    for status, said in ((200, answer), (400, lambda _: refusal(400))):
        site.paid.answer = said
        with site.full():
            before = len(posts(site.own))
            found, told, _ = site.ask()
            assert (found, told["x-steersman-spilled"]) == (status, "load")
            assert len(posts(site.own)) == before


def test_the_budget_is_free_again(site: Site) -> None:
    """Of 50 a request may cost 48.5: the next may go as soon as the provider may be asked again."""
    site.paid.answer = lambda _: refusal(503)
    status, _, body = served_at_home(site, lambda: site.ask(key="sk-poor", max_tokens=200))
    assert (status, body["model"]) == (200, "small")
    site.paid.answer = answer
    wait_for("the provider", lambda: site.spill()["open"]["paid"])
    with site.full():
        status, told, _ = site.ask(key="sk-poor", max_tokens=200)
        assert (status, told.get("x-steersman-spilled")) == (200, "load")


def test_the_keys_are_in_nothing_that_is_shown(site: Site) -> None:
    """Neither in the status nor in files of the gateway."""
    shown = [json.dumps(site.gateway.status())]
    files = [each for each in site.gateway.folder.rglob("*") if each.is_file()]
    shown += [each.read_text(errors="replace") for each in files]
    assert not [key for key in (PROVIDER_KEY, OWN_KEY) for each in shown if key in each]
