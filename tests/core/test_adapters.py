"""LoRA adapters: where a request for one goes, when a copy is loaded elsewhere, and what is refused."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.adapters import WARM_NS, LoadedAdapters, PoolAdapters
from extproc.core.fleet import Fleet
from extproc.core.outcome import End, Hold, Outcome, Reject, Routed
from extproc.core.policy import ClassSpec, Policy
from extproc.core.reading import parse
from extproc.core.reports import ReplicaReport
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.routes import find_route
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler

S = 1_000_000_000
ADAPTERS = PoolAdapters(names=frozenset({"law", "code", "chat", "med"}), loaded_max=2, load_ms=500.0)
ASKED = Request(
    kind=RouteKind.CHAT,
    dialect=Dialect.OPENAI,
    stream=True,
    max_new_tokens=50,
    prompt_bytes=400,
    segments=("a question",),
)
T = Tenant(name="t")


class Site:
    """Replicas that serve a base and its adapters."""

    def __init__(self, replicas: int = 4, *, permits: int = 4, **facts: Any) -> None:
        pool = make_pool(
            *(f"10.0.0.{i}:80" for i in range(replicas)),
            permits=permits,
            models=("base", *sorted(ADAPTERS.names)),
            **{"strategy": "steer", "adapters": ADAPTERS, **facts},
        )
        policy = Policy(classes=(ClassSpec(hold_ns=5 * S),))
        self.scheduler: Scheduler = make_scheduler(pool, policy=policy, default_model="base")
        self.pool = self.scheduler.fleet.pools["p"]

    def ask(self, model: str, *, now_ns: int = 0, tenant: Tenant = T, **more: Any) -> Routed | Reject | Hold:
        answer = self.scheduler.admit(replace(ASKED, model=model, **more), tenant, now_ns=now_ns)
        assert isinstance(answer, Routed | Reject | Hold)
        return answer

    def placed(self, model: str, *, now_ns: int = 0, **more: Any) -> Routed:
        answer = self.ask(model, now_ns=now_ns, **more)
        assert isinstance(answer, Routed), answer
        return answer

    def at(self, model: str, *, now_ns: int = 0) -> str:
        return self.placed(model, now_ns=now_ns).addresses[0]

    def ends(self, routed: Routed, *, now_ns: int) -> None:
        outcome = Outcome(
            reservation=routed.reservation,
            final=True,
            status=200,
            end=End.OK,
            served_by=routed.addresses[0],
            attempts=1,
        )
        self.scheduler.settlement.settle(outcome, now_ns=now_ns)

    def loaded(self, name: str) -> list[str]:
        """Who has it."""
        return [each.address for each in self.pool.endpoints if each.adapters and name in each.adapters]

    def loads(self) -> int:
        return sum(each.adapters.loads for each in self.pool.endpoints if each.adapters)


def test_an_adapter_stays_where_it_is_loaded() -> None:
    """One request after another for the same adapter: one replica, one load; another adapter has its own."""
    site = Site()
    for i in range(10):
        site.ends(site.placed("law", now_ns=i * S), now_ns=i * S + S // 2)
    assert (len(site.loaded("law")), site.loads()) == (1, 1)
    for i in range(10, 20):
        site.ends(site.placed("code", now_ns=i * S), now_ns=i * S + S // 2)
    assert (len(site.loaded("code")), site.loads()) == (1, 2)


def test_a_hot_one_spreads() -> None:
    """With its home full the next goes where a copy must be loaded: none is held while a replica has room."""
    site = Site(replicas=2)
    assert [isinstance(site.ask("law"), Routed) for _ in range(5)] == [True] * 5
    assert (len(site.loaded("law")), site.loads()) == (2, 2)


def test_the_base_goes_anywhere() -> None:
    """It takes no adapter's place, wherever it goes."""
    site = Site()
    assert len({site.at("base") for _ in range(4)}) == 4
    assert site.loads() == 0


def test_a_free_place_before_one_that_is_taken() -> None:
    """A new adapter goes to a replica that has a place for it, not where another would be dropped."""
    site = Site(replicas=2)
    first = site.pool.endpoints[0]
    assert first.adapters is not None
    first.adapters.heard(["law", "code"], now_ns=0)
    assert site.at("med") == site.pool.endpoints[1].address
    assert first.adapters.names == ["law", "code"]


def test_one_that_was_used_a_moment_ago_costs_twice() -> None:
    """So where all places are taken the least recently used one goes, once it is cold."""
    loaded = LoadedAdapters(ADAPTERS)
    for i, name in enumerate(("law", "code")):
        loaded.begins(name, now_ns=i)
        loaded.ends(name, now_ns=i)
    assert loaded.cost_ms("law", now_ns=2) == 0.0
    assert loaded.cost_ms("med", now_ns=2) == 1_000.0
    assert loaded.cost_ms("med", now_ns=WARM_NS + 1) == 500.0
    loaded.begins("med", now_ns=3)
    assert loaded.names == ["code", "med"]


def test_where_every_place_is_at_work_no_other_adapter_goes() -> None:
    """The engine would hold it back; it waits here, and goes when a place is free."""
    site = Site(replicas=1, permits=8)
    site.placed("law")
    code = site.placed("code")
    released: list[Any] = []
    site.scheduler.dispatcher.on_release = lambda _, decision: released.append(decision)
    assert isinstance(site.ask("med"), Hold)
    site.placed("base", now_ns=1)
    site.scheduler.step(now_ns=S // 10)
    assert released == []
    site.ends(code, now_ns=S // 5)
    site.scheduler.step(now_ns=S // 4)
    assert [type(each) for each in released] == [Routed]
    assert site.loaded("code") == []


def test_no_storm_of_evictions() -> None:
    """Four adapters of equal use on two replicas of two places: each gets a home, and keeps it."""
    site, rng = Site(replicas=2, permits=16), Random(1)
    now_ns, running = 0, []
    for _ in range(400):
        now_ns += S // 20
        running.append(site.placed(rng.choice(sorted(ADAPTERS.names)), now_ns=now_ns))
        if len(running) > 3:
            site.ends(running.pop(0), now_ns=now_ns)
    assert site.loads() <= 6
    assert all(len(site.loaded(name)) == 1 for name in ADAPTERS.names)


def test_a_retry_may_go_where_a_copy_must_be_loaded() -> None:
    """Its only home may fail: another replica is named after it."""
    site = Site(replicas=3)
    site.placed("law")
    assert len(site.placed("law").addresses) > 1


def test_what_engines_report_counts() -> None:
    """An adapter at work on a replica is loaded there, whoever sent it; a new process has none."""
    site = Site()
    third = site.pool.endpoints[2]
    assert third.adapters is not None
    third.adapters.heard(["law", "of nobody here"], now_ns=0)
    assert site.at("law", now_ns=1) == third.address
    third.adapters.emptied()
    assert third.adapters.names == []


def says(site: Site, at: int, *, now_ns: int, **told: Any) -> None:
    """An agent's report of one replica."""
    address = site.pool.endpoints[at].address
    report = ReplicaReport(address=address, pool="p", waiting=0, running=0, **told)
    assert site.scheduler.fleet.heard(report, now_ns=now_ns)


def test_an_engine_that_says_what_is_loaded_is_believed() -> None:
    """Idle adapters draw requests too, what is gone draws none; what was placed just now is on its way."""
    site = Site(replicas=3)
    says(site, 2, now_ns=0, loaded_adapters=("law", "not ours"))
    assert site.at("law", now_ns=1) == site.pool.endpoints[2].address
    assert site.loads() == 0
    says(site, 2, now_ns=2, loaded_adapters=())
    assert site.loaded("law") == [site.pool.endpoints[2].address], "a request for it runs there"
    first = site.placed("code", now_ns=3)
    site.ends(first, now_ns=4)
    home = next(i for i, each in enumerate(site.pool.endpoints) if each.address == first.addresses[0])
    says(site, home, now_ns=5, loaded_adapters=())
    assert site.loaded("code") == []


def test_what_an_engine_has_and_nobody_used_goes_first() -> None:
    """A place that an unused adapter takes is free for another at the price of one load."""
    site = Site(replicas=1)
    says(site, 0, now_ns=0, loaded_adapters=("chat", "med"))
    loaded = site.pool.endpoints[0].adapters
    assert loaded is not None
    assert loaded.cost_ms("law", now_ns=0) == ADAPTERS.load_ms
    site.ends(site.placed("law", now_ns=1), now_ns=2)
    assert loaded.names == ["med", "law"]


def test_no_request_goes_where_the_engine_lacks_its_adapter() -> None:
    """It would answer 404: others are asked, for retries too; where all lack it the engines say so."""
    site = Site(replicas=3)
    for at in (0, 1):
        says(site, at, now_ns=0, served_adapters=("code",))
    third = site.pool.endpoints[2].address
    assert {site.placed("law", now_ns=i).addresses for i in range(3)} == {(third,)}
    assert site.placed("base", now_ns=4).addresses[0] != third
    says(site, 2, now_ns=5, served_adapters=())
    assert site.placed("law", now_ns=6).addresses[0] in {each.address for each in site.pool.endpoints}


def test_prompts_of_two_adapters_share_no_cache() -> None:
    """The same text has other blocks under another adapter, and the same under the same."""
    site = Site()
    text = "a long shared beginning " * 200
    more = {"segments": (text,), "marks": (b"user",), "prompt_bytes": len(text)}
    prefixes = {
        name: site.scheduler.resolve(replace(ASKED, model=name, **more), T, "i-1", now_ns=0)
        for name in ("base", "law", "code")
    }
    blocks = {name: found.work.prefix for name, found in prefixes.items() if not isinstance(found, Reject)}
    assert len(blocks) == 3
    assert blocks["law"]
    assert not set(blocks["law"]) & set(blocks["code"])
    assert not set(blocks["law"]) & set(blocks["base"])


def test_tgis_adapter_id_names_one() -> None:
    """In the parameters of TGI's own route; one that the tenant may not have is not there."""
    route = find_route("POST", "/generate")
    assert route is not None
    body = b'{"inputs": "x", "parameters": {"adapter_id": "law", "max_new_tokens": 5}}'
    request = parse(route, body)
    assert isinstance(request, Request)
    assert request.adapter == "law"
    site = Site()
    answer = site.scheduler.admit(request, T, now_ns=0)
    assert isinstance(answer, Routed)
    assert (answer.reservation.model, len(site.loaded("law"))) == ("law", 1)
    refused = site.scheduler.admit(request, replace(T, models=frozenset({"base"})), now_ns=0)
    assert isinstance(refused, Reject)
    assert (refused.status, refused.code) == (404, "model_not_found")
    unknown = parse(route, body.replace(b"law", b"else"))
    assert isinstance(unknown, Request)
    other = site.scheduler.admit(unknown, T, now_ns=0)
    assert isinstance(other, Routed)
    assert other.reservation.model == "base"


def test_a_reload_keeps_what_is_loaded() -> None:
    """Another bound or load time forgets nothing; without the setting nothing is kept."""
    site = Site()
    home = site.at("law")
    spec = make_pool(
        *(each.address for each in site.pool.endpoints),
        models=("base", *sorted(ADAPTERS.names)),
        adapters=replace(ADAPTERS, load_ms=50.0),
    )
    site.scheduler.fleet.apply([spec])
    endpoint = site.scheduler.fleet.endpoint("p", home)
    assert endpoint is not None
    assert endpoint.adapters is not None
    assert (endpoint.adapters.names, endpoint.adapters.of.load_ms) == (["law"], 50.0)
    site.scheduler.fleet.apply([replace(spec, adapters=None)])
    assert endpoint.adapters is None


@given(st.lists(st.tuples(st.sampled_from([*sorted(ADAPTERS.names), "base"]), st.booleans()), max_size=80))
def test_books_of_a_replica_stay_true(steps: list[tuple[str, bool]]) -> None:
    """However requests come and end, none that is at work is dropped, and no more stay than have a place."""
    loaded, running = LoadedAdapters(ADAPTERS), []
    for now_ns, (name, begins) in enumerate(steps):
        if begins:
            loaded.begins(name, now_ns=now_ns)
            running.append(name)
        elif name in running:
            running.remove(name)
            loaded.ends(name, now_ns=now_ns)
        at_work = {each for each in running if each in ADAPTERS.names}
        assert all(each in loaded for each in at_work)
        assert len(loaded) <= max(ADAPTERS.loaded_max, len(at_work) + 1)


def test_without_the_setting_nothing_is_looked_at() -> None:
    """A pool of several names without adapters has no books of them."""
    fleet = Fleet([make_pool("10.0.0.1:80", models=("a", "b"))])
    assert fleet.endpoints[0].adapters is None
