"""What home refuses or fails goes to the provider in the same request, through the real Envoy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway import KEYS, wait_for
from scripted_engine import LOST, Script, ScriptedEngine, SeenRequest
from spill_site import OWN_KEY, PROVIDER_KEY, SpillSite, answer, body_at, posts, refusal, two_pools

pytestmark = pytest.mark.envoy

Site = SpillSite[ScriptedEngine]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with two_pools(tmp_path_factory.mktemp("keys"), "static", after_failure=True) as found:
        yield found


@pytest.fixture
def site(place: Site) -> Site:
    place.own.answer = place.paid.answer = answer
    wait_for("the provider", lambda: place.spill()["open"].get("paid", True))
    # After a refusal a replica is tried again in a moment.
    wait_for("home", lambda: place.ask(key=KEYS["globex"])[0] == 200)
    return place


def fails(status: int) -> Any:
    """An engine that refuses work, and is found well."""
    return lambda request: refusal(status) if request.method == "POST" else answer(request)


def test_a_refusal_goes_on_under_the_other_name(site: Site) -> None:
    """It is charged once, by the provider's price, and its budget knows it."""
    spent, tokens = site.spill()["spent"]["little"], site.gateway.tenant("acme")["output_tokens"]
    goes_on_in_its_own_way(site)
    wait_for("its end", lambda: site.gateway.tenant("acme")["output_tokens"] == tokens + 3)
    price = (7 * 100_000 + 3 * 200_000) / 1e6
    wait_for("its cost", lambda: site.spill()["spent"]["little"] == pytest.approx(spent + price))
    assert site.spill()["counts"]["little paid failed"] >= 1
    assert site.spill()["under_way"] == 0


def test_where_the_service_tells_the_keys_as_well(tmp_path: Path) -> None:
    """The same over ADS."""
    with two_pools(tmp_path, "ads", after_failure=True) as site:
        goes_on_in_its_own_way(site)


def goes_on_in_its_own_way(site: Site) -> None:
    """One request and one answer, of the provider's model; neither pool sees the other's key, path, header or
    name, and the rest of the body is the client's to the letter."""
    site.own.answer = fails(503)
    text = 'named "model": "small" \u2603 ' + "x" * 3_000_000
    messages = [{"role": "user", "content": text}]
    more: dict[str, Any] = {"seed": 12345678901234567890, "messages": messages}
    status, told, body = site.ask(**more, metadata={"model": "small"})
    assert (status, body["model"]) == (200, "gpt-large")
    assert (told["x-steersman-spilled"], told["x-steersman-model"]) == ("failed", "gpt-large")
    home, there = posts(site.own)[-1], posts(site.paid)[-1]
    assert (body_at(home)["model"], body_at(there)["model"]) == ("small", "gpt-large")
    assert body_at(there) == {**body_at(home), "model": "gpt-large"}
    assert there.json["messages"] == messages
    assert (home.path, there.path) == ("/engine/v1/chat/completions", "/openai/v1/chat/completions")
    assert (there.headers["authorization"], home.headers["x-api-key"]) == (f"Bearer {PROVIDER_KEY}", OWN_KEY)
    assert (there.headers["x-project"], home.headers["x-rack"]) == ("ours", 'seven "7"')
    assert not {"x-api-key", "x-rack"} & set(there.headers)
    assert not {"authorization", "x-project"} & set(home.headers)
    assert not [name for each in (there, home) for name in each.headers if name.startswith("x-steersman")]
    assert PROVIDER_KEY not in repr(site.own.seen)
    assert not any(key in repr(site.paid.seen) for key in (OWN_KEY, KEYS["acme"]))


def test_a_stream_goes_on(site: Site) -> None:
    """By the official client: all its events are the provider's, with the usage that it asked for."""
    site.own.answer = fails(401)
    client = openai.OpenAI(base_url=f"{site.gateway.url}/v1", api_key=KEYS["acme"], max_retries=0)
    events = list(
        client.chat.completions.create(
            model="small",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=50,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(each.choices[0].delta.content or "" for each in events if each.choices) == "a b c "
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 3
    assert {each.model for each in events} == {"gpt-large"}


def test_a_lost_connection_goes_on(site: Site) -> None:
    """Where home answers nothing at all it has not served."""
    site.own.answer = fails(LOST)
    status, told, body = site.ask()
    assert (status, body["model"], told["x-steersman-spilled"]) == (200, "gpt-large", "failed")


def test_what_home_serves_or_calls_wrong_goes_nowhere(site: Site) -> None:
    """The answer is the client's, who is told of no other pool, and nothing was spent."""
    spent, sent = site.spill()["spent"]["little"], len(posts(site.paid))
    for status, said in ((200, answer), (400, fails(400))):
        site.own.answer = said
        found, told, _ = site.ask()
        assert (found, "x-steersman-spilled" in told) == (status, False)
    wait_for("quiet", site.gateway.quiet)
    assert (site.spill()["spent"]["little"], len(posts(site.paid))) == (spent, sent)


def test_who_does_not_allow_it_is_answered_by_home(site: Site) -> None:
    """Its prompt leaves for no provider, and it hears what home says."""
    sent = len(posts(site.paid))
    site.own.answer = fails(503)
    status, told, _ = site.ask(key=KEYS["globex"])
    assert (status, "x-steersman-spilled" in told) == (503, False)
    assert len(posts(site.paid)) == sent


def test_what_both_refuse_is_the_providers_answer(site: Site) -> None:
    """The last answer is the client's, and it is not told to ask again at once: home has failed as well."""

    def busy(request: SeenRequest) -> Script:
        return refusal(429, {"retry-after": "7"}) if request.method == "POST" else answer(request)

    site.own.answer, site.paid.answer = fails(502), busy
    status, told, _ = site.ask()
    assert (status, told.get("retry-after"), "x-should-retry" in told) == (429, "7", False)
    wait_for("its end", lambda: not site.spill()["open"]["paid"])


def test_the_keys_are_in_nothing_that_is_shown(site: Site) -> None:
    """Neither in the status nor in files of the gateway."""
    shown = [json.dumps(site.gateway.status())]
    files = [each for each in site.gateway.folder.rglob("*") if each.is_file()]
    shown += [each.read_text(errors="replace") for each in files]
    assert not [key for key in (PROVIDER_KEY, OWN_KEY) for each in shown if key in each]
