"""The cache's rules by the configuration, what a reload purges, and the operators' orders."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from extproc.config.load import loads
from extproc.config.model import Config
from extproc.core.cachekeys import AskAnswer, CacheCharge, CachedAnswer, WantedAnswer
from extproc.core.reading import parse
from extproc.core.reports import ReplicaReport, ReportedState
from extproc.core.request import Request
from extproc.core.routes import find_route
from extproc.core.tenant import hash_key
from extproc.service.app import App
from extproc.service.cache import LOOK_EVERY_NS
from extproc.service.cache_orders import CacheOrders
from tests.stand.cached import CHAT, answer_of, body_of

KEY = hash_key("k")


def config(
    tenants: dict[str, Any],
    pools: dict[str, Any] | None = None,
    cache: dict[str, Any] | None = None,
    **more: Any,
) -> Config:
    """Tenants and pools by name, each with its `cache`, or None for none."""
    listed = [
        {"name": name, "models": [name], "endpoints": [{"address": f"10.0.0.{i}:80"}]}
        | ({"cache": said} if said is not None else {})
        for i, (name, said) in enumerate((pools or {"m": None}).items(), 1)
    ]
    named = [
        {"name": name, "keys": [{"sha256": hash_key(name)}]} | ({"cache": said} if said is not None else {})
        for name, said in tenants.items()
    ]
    section = {} if cache is None else cache
    return Config.model_validate({"pools": listed, "tenants": named, "cache": section, **more})


class Serving:
    """A service that is not started, and requests to its cache."""

    def __init__(self, given: Config) -> None:
        self.now_ns = 5_000_000_000
        self.app = App(given, clock=lambda: self.now_ns)
        self.part = self.app.caching
        app = self.app
        self.orders = CacheOrders(
            self.part, app.processor, tenants=app.requests.tenants, clock=lambda: self.now_ns
        )
        self.number = 0

    def look(
        self, tenant: str, body: bytes = body_of(), *, model: str = "m", pool: str = ""
    ) -> CachedAnswer | WantedAnswer | None:
        cache, route = self.part.cache, find_route("POST", CHAT)
        assert cache is not None
        assert route is not None
        request = parse(route, body)
        assert isinstance(request, Request)
        whose = self.app.processor.directory.tenants[tenant]
        found = cache.look(request, body, whose, model=model, pool=pool or model, directive=None)
        assert not isinstance(found, AskAnswer)
        return found

    def fill(self, tenant: str, body: bytes = body_of(), *, model: str = "m", pool: str = "") -> None:
        found = self.look(tenant, body, model=model, pool=pool)
        assert isinstance(found, WantedAnswer)
        assert self.part.cache is not None
        self.number += 1
        self.part.cache.flagged(f"r{self.number}", tenant, found)
        assert self.part.cache.fill(f"r{self.number}", answer_of())

    def reload(self, given: Config) -> None:
        self.part.apply(given)

    def order(self, **order: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(asyncio.run(self.orders.order(json.dumps(order).encode())))
        return found

    def purge(self, **order: Any) -> int:
        count: int = json.loads(asyncio.run(self.orders.purge(json.dumps(order).encode())))["purged"]
        return count


@pytest.mark.parametrize(
    ("tenant", "pool", "looked"),
    [
        (None, None, False),
        ({}, None, False),
        ({"mode": "on"}, None, True),
        ({"mode": "ask"}, None, False),
        ({"mode": "off"}, {"mode": "on"}, False),
        (None, {}, True),
        ({}, {"mode": "on"}, True),
        (None, {"mode": "ask"}, False),
        ({"mode": "on"}, {"mode": "ask"}, True),
        ({"mode": "on"}, {"mode": "off"}, False),
    ],
)
def test_who_has_a_cache(tenant: Any, pool: Any, looked: bool) -> None:
    """What the tenant says, else what the pool says; a pool's off holds for all; nobody's where none says."""
    serving = Serving(config({"a": tenant}, {"m": pool}))
    assert (serving.look("a") is not None) is looked


def test_without_the_section_there_is_none() -> None:
    """Nobody looks anywhere, and orders say so."""
    given = config({"a": {"mode": "on"}})
    serving = Serving(given.model_copy(update={"cache": None}))
    assert serving.app.processor.cache is None
    assert serving.part.observers == ()
    assert serving.part.status() == {}
    assert serving.order() == {"on": False}
    assert serving.purge(all=True) == 0
    with pytest.raises(ValueError, match="no section"):
        serving.order(tenant="a", body="{}")


def test_a_rule_holds_what_the_file_says() -> None:
    """The tenant's own time, the cache's where it says none; its charge, its group, its pool's revision."""
    own = {"mode": "on", "ttl_s": 5, "charge": "tokens", "share": "g", "sampled": True, "tools": True}
    serving = Serving(config({"a": own, "b": {"mode": "on"}}, {"m": {"revision": "7"}}, {"ttl_s": 60}))
    first, second = (serving.part.rule_for(name, "m") for name in "ab")
    assert first is not None
    assert second is not None
    assert (first.scope, first.charge, first.ttl_ns) == ("group:g", CacheCharge.TOKENS, 5_000_000_000)
    assert (first.sampled, first.tools, first.revision) == (True, True, "7")
    assert (second.scope, second.ttl_ns, second.sampled) == ("tenant:b", 60_000_000_000, False)


ON = {"mode": "on"}


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (config({"a": ON, "b": ON}, {"m": None, "n": None}), 3),
        (config({"b": ON}, {"m": None, "n": None}), 1),
        (config({"a": ON, "b": ON}, {"m": {"revision": "2"}, "n": None}), 1),
        (config({"a": ON, "b": ON}, {"m": None}), 2),
    ],
)
def test_a_reload_forgets_what_is_no_more(after: Config, left: int) -> None:
    """A tenant's answers with the tenant, a pool's with the pool or its revision; else nothing."""
    serving = Serving(config({"a": ON, "b": ON}, {"m": None, "n": None}))
    serving.fill("a")
    serving.fill("b")
    serving.fill("a", model="n")
    serving.reload(after)
    assert serving.part.status()["answers"] == left


def with_adapters(base: str, paths: dict[str, str]) -> Config:
    """A pool `m` whose engines are told to load `base` and `other` as adapters, from these places."""
    text = f"""
pools:
  - name: m
    models: [m, base, other]
    engine: vllm
    endpoints: [{{address: "10.0.0.1:80"}}]
    cache: {{mode: 'on'}}
    adapters: {{names: [base, other], load: {{path: {json.dumps(base)}, paths: {json.dumps(paths)}}}}}
tenants:
  - {{name: a, keys: [{{sha256: "{"a" * 64}"}}]}}
cache: {{}}
"""
    return loads(text)


@pytest.mark.parametrize(
    ("after", "known"),
    [
        (with_adapters("/v1/{name}", {}), {"m", "base", "other"}),
        (with_adapters("/v1/{name}", {"base": "/v2/base"}), {"m", "other"}),
        (with_adapters("/v2/{name}", {}), {"m"}),
    ],
    ids=["the same", "one elsewhere", "all elsewhere"],
)
@pytest.mark.parametrize("reloads", [True, False])
def test_an_adapter_from_another_place_is_another_model(
    after: Config, known: set[str], reloads: bool
) -> None:
    """Its answers are gone at a reload, and not found where a store has outlived the service; the base
    model's and other adapters' stay."""
    before = Serving(with_adapters("/v1/{name}", {}))
    for model in ("m", "base", "other"):
        before.fill("a", model=model, pool="m")
    serving = before
    if reloads:
        serving.reload(after)
        assert serving.part.status()["answers"] == len(known)
    else:
        serving = Serving(after)
        assert serving.part.cache is not None
        assert before.part.store is not None
        serving.part.cache.store = before.part.store
    found = {
        model
        for model in ("m", "base", "other")
        if isinstance(serving.look("a", model=model, pool="m"), CachedAnswer)
    }
    assert found == known


def test_who_leaves_a_group_takes_its_answers_along() -> None:
    """And is given none of the others'."""
    shared = {"mode": "on", "share": "g"}
    serving = Serving(config({"a": shared, "b": shared}))
    serving.fill("a")
    serving.fill("b", body_of("of b"))
    assert isinstance(serving.look("b"), CachedAnswer)
    serving.reload(config({"a": {"mode": "on"}, "b": shared}))
    assert isinstance(serving.look("a"), WantedAnswer)
    assert isinstance(serving.look("b"), WantedAnswer)
    assert isinstance(serving.look("b", body_of("of b")), CachedAnswer)


@pytest.mark.parametrize(
    "after",
    [
        config({"a": {"mode": "on", "share": "h"}}),
        config({"a": {"mode": "on"}}),
        config({"a": {"mode": "off"}}),
        config({"b": {"mode": "on"}}, {"m": {}}),
        config({"a": {"mode": "on", "share": "g"}}, {"m": {"revision": "2"}}),
    ],
    ids=["another group", "no group", "off", "gone", "another revision"],
)
def test_what_was_looked_up_under_another_rule_is_not_kept(after: Config) -> None:
    """A request was held while its tenant left the group or the file, or its pool changed: it was on its way
    to nobody when that was purged."""
    serving = Serving(config({"a": {"mode": "on", "share": "g"}}))
    found = serving.look("a")
    assert isinstance(found, WantedAnswer)
    serving.reload(after)
    # The tenants that the service itself knows are those of the file.
    serving.part._tenants_of = dict
    cache = serving.part.cache
    assert cache is not None
    assert cache.flagged("r1", "a", found) == ""
    assert not cache.fill("r1", answer_of())
    assert serving.part.status()["answers"] == 0
    assert serving.part.status()["fills"]["outdated"] == 1


def test_explain_says_whether_and_why_not() -> None:
    """With the key, and what is kept under it."""
    serving = Serving(config({"a": ON, "b": None}))
    body = body_of().decode()
    found = serving.order(tenant="a", body=body)
    assert (found["cached"], found["kept"]) == (True, None)
    serving.fill("a")
    serving.now_ns += 2_000_000_000
    found = serving.order(tenant="a", body=body)
    assert (found["kept"]["age_s"], found["kept"]["made_for"], found["scope"]) == (2.0, "a", "tenant:a")
    assert serving.purge(key="ab") == 0
    assert serving.purge(key=found["key"]) == 1
    assert "not deterministic" in serving.order(tenant="a", body='{"messages":[{"content":"x"}]}')["why"]
    assert "neither" in serving.order(tenant="b", body=body)["why"]
    assert "route" in serving.order(tenant="a", body='{"inputs":"x"}', path="/tokenize")["why"]
    for wrong, said in (
        ({"tenant": "c", "body": body}, "no tenant 'c'"),
        ({"body": body}, "whose request"),
        ({"tenant": "a", "body": "{"}, "not valid JSON"),
        ({"tenant": "a", "body": body, "path": "/x"}, "no route"),
        ({"tenant": "a", "body": '{"model":"z","messages":[]}'}, "no model"),
    ):
        with pytest.raises(ValueError, match=said):
            serving.order(**wrong)


def test_a_purge_takes_what_fits_all_that_is_said() -> None:
    """By tenant, pool, age; a purge of nothing, or of what is no key, is a mistake."""
    serving = Serving(config({"a": ON, "b": ON}))
    serving.fill("a")
    serving.now_ns += 10_000_000_000
    serving.fill("a", body_of("later"))
    serving.fill("b")
    assert serving.purge(tenant="a", older_s=9) == 1
    assert serving.purge(tenant="a", pool="n") == 0
    assert serving.purge(model="m", tenant="b") == 1
    assert serving.purge(all=True) == 1
    with pytest.raises(ValueError, match="say what"):
        serving.purge()
    with pytest.raises(ValueError, match="is no key"):
        serving.purge(key="xyz")


@pytest.mark.parametrize(
    "order",
    [
        {"tenant": "", "model": "m"},
        {"model": "", "tenant": "a"},
        {"pool": "", "tenant": "a"},
        {"key": "", "all": True},
        {"tenat": "a", "model": "m"},
        {"tenant": "a", "older_s": -1.0},
        {"tenant": "a", "older_s": 1e300},
        {"tenant": "a", "older_s": float("nan")},
    ],
)
def test_what_is_said_wrongly_never_purges_more_than_was_meant(order: dict[str, Any]) -> None:
    """An empty name, one that nobody knows, no age: a mistake, and nothing is gone."""
    serving = Serving(config({"a": ON, "b": ON}))
    serving.fill("a")
    serving.fill("b")
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        serving.purge(**order)
    assert serving.part.status()["answers"] == 2


def test_an_answer_that_is_on_its_way_is_purged_too() -> None:
    """It was asked for before: it is not kept when it comes."""
    serving = Serving(config({"a": ON}))
    found = serving.look("a")
    assert isinstance(found, WantedAnswer)
    assert serving.part.cache is not None
    serving.part.cache.flagged("r1", "a", found)
    assert serving.purge(tenant="a") == 0
    assert not serving.part.cache.fill("r1", answer_of())
    assert serving.part.status()["answers"] == 0


def told(serving: Serving, *said: str, state: ReportedState = ReportedState.READY) -> None:
    """The replicas of pool m have said that they run this; a look is due."""
    fleet = serving.app.scheduler.fleet
    for endpoint, revision in zip((e for e in fleet.endpoints if e.pool == "m"), said, strict=False):
        endpoint.report = ReplicaReport(address=endpoint.address, pool="m", revision=revision, state=state)
    serving.now_ns += LOOK_EVERY_NS
    serving.part.step(now_ns=serving.now_ns)


def two_replicas(pool: dict[str, Any] | None = None) -> Config:
    given = config({"a": ON}, {"m": pool, "n": None})
    both = [{"address": "10.0.0.1:80"}, {"address": "10.0.0.9:80"}]
    return Config.model_validate(
        {
            "tenants": [tenant.model_dump(exclude_defaults=True) for tenant in given.tenants],
            "cache": {},
            "pools": [
                {"name": "m", "models": ["m"], "endpoints": both, **({"cache": pool} if pool else {})},
                {"name": "n", "models": ["n"], "endpoints": [{"address": "10.0.0.2:80"}]},
            ],
        }
    )


def test_another_model_behind_a_pool_empties_it() -> None:
    """By what its replicas say; a first word, a replica that is loading and another pool change nothing."""
    serving = Serving(two_replicas())
    told(serving, "", "")
    serving.fill("a", model="n")
    told(serving, "m@1", "m@1")
    serving.fill("a")
    told(serving, "m@1", "m@1")
    assert isinstance(serving.look("a"), CachedAnswer)
    told(serving, "m@2", "m@2", state=ReportedState.LOADING)
    told(serving, "", "")
    assert isinstance(serving.look("a"), CachedAnswer)
    told(serving, "m@2", "m@2")
    assert isinstance(serving.look("a"), WantedAnswer)
    assert serving.part.status()["answers"] == 1
    assert isinstance(serving.look("a", model="n"), CachedAnswer)
    told(serving, "m@1", "m@1")
    assert isinstance(serving.look("a"), WantedAnswer)


def test_replicas_that_disagree_are_not_cached() -> None:
    """Until they agree again; the log, the figures and the explanation say so.

    What was kept is gone: who runs another thing now answered before that was heard of.
    """
    serving = Serving(two_replicas())
    told(serving, "m@1", "m@1")
    serving.fill("a")
    told(serving, "m@1", "m@2")
    assert serving.look("a") is None
    assert serving.part.status()["split"] == {"m": ["m@1", "m@2"]}
    assert "different things: m@1, m@2" in serving.order(tenant="a", body=body_of().decode())["why"]
    told(serving, "m@1", "m@1")
    assert isinstance(serving.look("a"), WantedAnswer)
    assert serving.part.status()["split"] == {}
    serving.fill("a")
    told(serving, "m@1", "m@2")
    told(serving, "m@2", "m@2")
    assert isinstance(serving.look("a"), WantedAnswer)


def test_the_files_own_revision_is_the_last_word() -> None:
    """Replicas with one model at different paths are cached all the same."""
    serving = Serving(two_replicas({"revision": "5f0b"}))
    told(serving, "/a/m", "/b/m")
    serving.fill("a")
    told(serving, "/c/m", "/c/m")
    assert isinstance(serving.look("a"), CachedAnswer)
    serving.reload(two_replicas({"revision": "5f0c"}))
    assert isinstance(serving.look("a"), WantedAnswer)
