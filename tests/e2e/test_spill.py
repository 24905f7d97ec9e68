"""Spill-over through the real Envoy: a full pool's requests go to a provider, by a key of ours."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from gateway import KEYS, Gateway, wait_for
from one_model import Engine
from spill_site import SpillSite

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

PROVIDER_KEY = "sk-of-the-operator-at-the-provider"
#: Currency for a million tokens: the provider's usage of 7 and 3 costs 13.
PRICE = {"input_per_million": 100_000, "output_per_million": 200_000}
COST = 1.3
TENANTS = [
    {"name": "acme", "keys": [{"sha256": hash_key(KEYS["acme"])}], "spill": {}, "cache": {"mode": "on"}},
    {"name": "globex", "keys": [{"sha256": hash_key(KEYS["globex"])}]},
    {
        "name": "poor",
        "keys": [{"sha256": hash_key("sk-poor")}],
        "spill": {"budget_per_hour": 50},
    },
]


class Site(SpillSite[Engine]):
    """One whose budget is looked at."""

    def spent(self) -> float:
        """Of the own pool, in the last hour."""
        spent: float = self.spill()["spent"]["little"]
        return spent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    key_file = tmp_path_factory.mktemp("keys") / "provider"
    key_file.write_text(PROVIDER_KEY)
    with ExitStack() as stack:
        own = stack.enter_context(Engine("small"))
        paid = stack.enter_context(Engine("gpt-small", key=PROVIDER_KEY))
        pools: dict[str, dict[str, Any]] = {
            "little": {
                "models": ["small"],
                "addresses": [{"address": own.address, "max_concurrent": 1}],
                "engine": "vllm",
                "spill": {"to": "paid", "models": {"small": "gpt-small"}, "wait_ms": 100},
            },
            "paid": {
                "models": ["gpt-small"],
                "addresses": [paid.address],
                "engine": "vllm",
                "upstream": {"key": {"file": str(key_file)}},
                "price": PRICE,
            },
        }
        gateway = Gateway(
            pools,
            tenants=TENANTS,
            cache={},
            classes=[{"name": "standard", "hold_ms": 8_000}],
        )
        yield Site(stack.enter_context(gateway), own, paid)


@pytest.fixture(autouse=True)
def _provided(site: Site) -> None:
    site.paid.status = 200
    # After a refusal it is left alone for a while.
    wait_for("the provider", lambda: site.gateway.status()["spill"]["open"].get("paid", True))


def test_home_first_and_the_provider_while_it_is_full(site: Site) -> None:
    """The client is told who answered and why; the provider gets our key, its model's name, and no header of
    ours; with room at home again the next stays."""
    status, told, body = site.ask()
    assert (status, body["choices"][0]["message"]["content"]) == (200, "small")
    assert "x-steersman-spilled" not in told
    with site.full():
        status, told, body = site.ask(temperature=0.10, seed=12345678901234567890)
        assert (status, body["model"]) == (200, "gpt-small")
        assert (told["x-steersman-spilled"], told["x-steersman-model"]) == ("load", "gpt-small")
    headers, seen = site.paid.seen[-1]
    assert headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert not [name for name in headers if name.startswith("x-steersman")]
    assert json.loads(seen)["model"] == "gpt-small"
    assert b"12345678901234567890" in seen
    assert KEYS["acme"] not in repr(site.paid.seen)
    status, told, body = site.ask()
    assert (status, body["model"], "x-steersman-spilled" in told) == (200, "small", False)


def test_a_stream_by_the_official_client(site: Site) -> None:
    """Its events come from the provider, with the usage that was asked for, and are charged at its price."""
    before = site.spent()
    client = openai.OpenAI(base_url=f"{site.gateway.url}/v1", api_key=KEYS["acme"], max_retries=0)
    with site.full():
        stream = client.chat.completions.create(
            model="small",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=50,
            stream=True,
            stream_options={"include_usage": True},
        )
        events = list(stream)
    assert "".join(each.choices[0].delta.content or "" for each in events if each.choices) == "w0 w1 w2 "
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 3
    assert {each.model for each in events} == {"gpt-small"}
    wait_for("its charge", lambda: site.spent() == pytest.approx(before + COST))


def test_who_does_not_allow_it_waits_at_home(site: Site) -> None:
    """No prompt of such a tenant is ever at the provider."""
    seen = len(site.paid.seen)
    status, told, body = site.waits_at_home(lambda: site.ask(key=KEYS["globex"]))
    assert (status, body["model"], "x-steersman-spilled" in told) == (200, "small", False)
    assert len(site.paid.seen) == seen


def test_a_tenants_budget_is_never_passed(site: Site) -> None:
    """The most that a request can cost is kept free for it; what it did not cost is there again after it."""
    with site.full():
        status, told, _ = site.ask(key="sk-poor")
        assert (status, told.get("x-steersman-spilled")) == (200, "load")
        wait_for("its end", lambda: site.gateway.tenant("poor")["ok"] == 1)
        # 5 + 16 + 64 tokens of prompt at most, and 200 of output, cost 48.5 of 50.
        status, told, _ = site.ask(key="sk-poor", max_tokens=200)
        assert (status, told.get("x-steersman-spilled")) == (200, "load")


def test_a_provider_that_refuses_is_left_alone(site: Site) -> None:
    """Its 429 is heard once, and that request served at home; who comes then waits there."""
    site.paid.status = 429
    seen = len(site.paid.seen)
    found: list[Any] = []
    with site.full():
        first = threading.Thread(target=lambda: found.append(site.ask()))
        first.start()
        wait_for("a refusal", lambda: len(site.paid.seen) == seen + 1)
        site.own.open.set()
        first.join()
    assert (found[0][0], found.pop()[2]["model"]) == (200, "small")
    with site.full():
        wait_for("its end", lambda: not site.gateway.status()["spill"]["open"]["paid"])
        waiting = threading.Thread(target=lambda: found.append(site.ask()))
        waiting.start()
        wait_for("a held request", lambda: site.gateway.status()["held"] == 1)
    waiting.join()
    assert found[0][2]["model"] == "small"
    assert len(site.paid.seen) == seen + 1


def test_another_models_answer_is_not_cached_as_this_ones(site: Site) -> None:
    """What the provider said is given to nobody who asks again at home."""
    with site.full():
        _, told, _ = site.ask(temperature=0, seed=77)
        assert told["x-steersman-spilled"] == "load"
    _, told, body = site.ask(temperature=0, seed=77)
    assert (body["model"], "x-steersman-cache" in told) == ("small", False)


def test_the_key_is_in_nothing_that_is_shown(site: Site) -> None:
    """Neither in what Envoy dumps of its configuration, nor in logs, figures or rendered files."""
    admin = f"http://127.0.0.1:{site.gateway.admin_port}"
    shown = [json.dumps(site.gateway.status())]
    for page in ("config_dump", "stats"):
        with urllib.request.urlopen(f"{admin}/{page}", timeout=20) as answer:
            shown.append(answer.read().decode())
    files = [each for each in site.gateway.folder.rglob("*") if each.is_file()]
    shown += [each.read_text(errors="replace") for each in files]
    assert all(PROVIDER_KEY not in each for each in shown)
