"""The cache between tenants, and what a hit costs, through the real Envoy."""

from __future__ import annotations

from typing import Any

import pytest
from cache_gateway import MESSAGES, caching, figures, kept, looked, served, tenant
from gateway import KEYS, Gateway, wait_for

pytestmark = pytest.mark.envoy

BODY = {"model": "tiny-chat", "messages": MESSAGES, "temperature": 0}


def ask(gateway: Gateway, name: str = "acme", *, cache: str = "", **more: Any) -> dict[str, str]:
    """Ask as a tenant; the answer's headers."""
    headers = {"x-steersman-cache": cache} if cache else {}
    status, told, answer = gateway.call(
        "/v1/chat/completions", {**BODY, **more}, key=KEYS[name], headers=headers
    )
    assert status == 200, answer
    return told


def test_nobody_gets_anothers_answer() -> None:
    """The same body of two tenants is asked for twice; each then gets its own again."""
    with caching() as (gateway, _):
        ask(gateway)
        kept(gateway, 1)
        assert "x-steersman-cache" not in ask(gateway, "globex")
        kept(gateway, 2)
        for name in ("acme", "globex"):
            assert ask(gateway, name)["x-steersman-cache"].startswith("hit")
        assert served(gateway) == 2
        assert set(figures(gateway)["scopes"]) == {"tenant:acme", "tenant:globex"}


def test_a_group_shares_and_a_purge_takes_a_tenants_answers_out_of_it() -> None:
    """Both name it. By name, by model or by age answers are purged; a purge of nothing named is a mistake."""
    shared = {"mode": "on", "share": "friends"}
    with caching(tenant("acme", shared), tenant("globex", shared)) as (gateway, _):
        ask(gateway)
        kept(gateway, 1)
        assert ask(gateway, "globex")["x-steersman-cache"].startswith("hit")
        assert gateway.order("PurgeCache", tenant="globex")["purged"] == 0
        assert gateway.order("PurgeCache", model="other")["purged"] == 0
        assert gateway.order("PurgeCache", tenant="acme", older_s=3_600)["purged"] == 0
        assert gateway.order("PurgeCache", tenant="acme", model="tiny-chat")["purged"] == 1
        assert figures(gateway)["answers"] == 0
        with pytest.raises(Exception, match="say what is to be purged"):
            gateway.order("PurgeCache")


def test_clients_say_whether_where_they_may() -> None:
    """Mode `ask`: unasked nothing is cached; `refresh` asks a replica; a tenant without a cache has none."""
    with caching(tenant("acme", {"mode": "ask"}), tenant("globex", {"mode": "off"})) as (gateway, _):
        ask(gateway)
        ask(gateway, "globex", cache="use")
        wait_for("quiet", gateway.quiet)
        ask(gateway, cache="use")
        kept(gateway, 1)
        assert ask(gateway, cache="use")["x-steersman-cache"].startswith("hit")
        assert "x-steersman-cache" not in ask(gateway)
        assert "x-steersman-cache" not in ask(gateway, cache="off")
        assert "x-steersman-cache" not in ask(gateway, cache="refresh")
        assert "x-steersman-cache" not in ask(gateway, "globex", cache="use")
        assert looked(gateway, "hit") == 1


@pytest.mark.parametrize(
    ("charge", "requests", "tokens"), [("request", 3, 12), ("nothing", 1, 12), ("tokens", 3, 36)]
)
def test_a_hit_costs_what_its_tenant_says(charge: str, requests: int, tokens: int) -> None:
    """A request and no tokens, nothing, or all; the quota is what it was, and nothing stays in flight."""
    quota = {"requests_per_minute": 6, "output_tokens_per_hour": 360, "concurrent_requests": 1}
    with caching(tenant("acme", {"mode": "on", "charge": charge}, quota=quota)) as (gateway, _):
        ask(gateway, max_tokens=12)
        kept(gateway, 1)
        wait_for("quiet", gateway.quiet)
        for _ in range(2):
            told = ask(gateway, max_tokens=12)
            assert told["x-steersman-cache"].startswith("hit")
            assert ("x-ratelimit-limit-requests" in told) == (charge != "nothing")
        use = gateway.status()["use"]["tenants"]["acme"]
        used = {each["limit"]: each["used"] for each in use["limits"]}
        # Both drain as time passes, one in ten seconds.
        assert requests - 1 < used["requests_per_minute"] <= requests
        assert tokens - 12 < used["output_tokens_per_hour"] <= tokens
        status = gateway.status()
        assert (status["in_flight"], status["tenants"]["acme"]["decided"]) == (0, 1)
        assert status["counts"]["cache.hits"] == 2


def test_a_spent_quota_refuses_a_hit_too() -> None:
    """What is charged by requests is refused by requests."""
    quota = {"requests_per_minute": 2, "burst": 1.0}
    with caching(tenant("acme", {"mode": "on"}, quota=quota)) as (gateway, _):
        ask(gateway)
        kept(gateway, 1)
        assert ask(gateway)["x-steersman-cache"].startswith("hit")
        status, _, answer = gateway.call("/v1/chat/completions", BODY)
        assert (status, answer["error"]["code"]) == (429, "quota_exceeded")


def test_a_hit_is_explained() -> None:
    """By the request's own id: that no replica was asked, and how old the answer was."""
    with caching() as (gateway, _):
        ask(gateway)
        kept(gateway, 1)
        told = ask(gateway)
        assert told["x-steersman-cache"].startswith("hit")
        found = gateway.order("Explain", id=told["x-request-id"])
        assert "answered from the cache" in str(found)


def test_nothing_is_cached_unless_the_file_says_so() -> None:
    """With a cache and nobody who is to use it nothing is looked up, gathered or kept."""
    plain = {"name": "acme", "keys": tenant("acme")["keys"]}
    with caching(plain) as (gateway, _):
        for _ in range(2):
            assert "x-steersman-cache" not in ask(gateway, cache="use")
        wait_for("quiet", gateway.quiet)
        assert figures(gateway)["requests"] == {}
        assert gateway.status()["counts"].get("cache.fills", 0) == 0
