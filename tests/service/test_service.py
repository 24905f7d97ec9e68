from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from pathlib import Path

import grpc
import pytest

from extproc.config.load import loads
from extproc.config.restart import restart_needed
from extproc.core.outcome import Outcome, Reject, Reservation, Routed
from extproc.core.quota import ExactBooks, QuotaLimits
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Credentials, hash_key
from extproc.service.app import App
from extproc.service.roster import Roster
from extproc.wire.orders import STATUS
from tests.stand.waits import PATIENCE_S, until

S = 1_000_000_000
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
BASE = f"""
gateway: {{listen: "127.0.0.1:8080", auth: api_key}}
service: {{listen: ["127.0.0.1:50051"], drain_s: 1}}
limits: {{reservation_ttl_s: 60}}
pools:
  - name: chat
    models: [m]
    strategy: least_work
    endpoints: [{{address: "10.0.0.1:80"}}, {{address: "10.0.0.2:80"}}]
  - name: code
    models: [c]
    endpoints: [{{address: "10.0.0.3:80"}}]
tenants:
  - name: acme
    keys: [{{sha256: {hash_key("a-key")}}}]
"""


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * S

    def __call__(self) -> int:
        return self.now_ns


def app_of(text: str = BASE) -> tuple[App, Clock]:
    clock = Clock()
    return App(loads(text), clock=clock), clock


def admitted(app: App) -> Reservation:
    identity = app.processor.directory.identify(Credentials(authorization="Bearer a-key"), now_s=0)
    assert not isinstance(identity, Reject)
    decision = app.scheduler.admit(CHAT, identity.tenant, now_ns=app.clock())
    assert isinstance(decision, Routed)
    return decision.reservation


def reload(app: App, path: Path, text: str) -> bool:
    path.write_text(text, encoding="utf-8")
    return app.reload(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steersman.yaml"


def test_built_from_the_configuration() -> None:
    """Pools, tenants and limits are where they work."""
    app, _ = app_of()
    assert app.scheduler.fleet.models_for("a") == ["c", "m"]
    assert app.scheduler.settings.default_model == "m"
    assert list(app.processor.directory.tenants) == ["acme"]
    assert app.scheduler.ledger.ttl_ns == 60 * S
    assert app.scheduler.instance != app_of()[0].scheduler.instance


def test_settle_and_status(path: Path) -> None:
    """An outcome ends the request in books and figures, once; the status shows it as JSON."""
    app, clock = app_of()
    reservation = admitted(app)
    assert json.loads(app.view.json())["in_flight"] == 1
    clock.now_ns += 3 * S
    outcome = Outcome(reservation=reservation, final=True, status=200, served_by=reservation.address)
    for _ in range(2):
        app.settle(outcome)
    status = json.loads(app.view.json())
    assert (status["uptime_s"], status["in_flight"]) == (3.0, 0)
    assert status["tenants"]["acme"]["ok"] == 1
    assert status["counts"] == {"routed": 1, "settled.duplicate": 1, "settled.ok": 1}
    assert status["pools"]["chat"]["strategy"] == "least_work"


@pytest.mark.parametrize("text", ["pools: []", "pools: [", "", "\x00", BASE.replace("least_work", "best")])
def test_a_bad_file_changes_nothing(path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """The last good configuration stays, and the log says every mistake."""
    app, _ = app_of()
    config, directory = app.config, app.processor.directory
    assert not reload(app, path, text)
    assert app.config is config
    assert app.processor.directory is directory
    assert app.scheduler.counts["reload.refused"] == 1
    assert all("the last good configuration stays" in record.message for record in caplog.records)
    assert not app.reload(path.with_name("missing"))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8081", ["gateway.listen"]),
        (
            "auth: api_key",
            "auth: api_key, heartbeat_s: 6, retries: 1",
            ["gateway.retries", "gateway.heartbeat_s"],
        ),
        ("drain_s: 1", "drain_s: 2", ["service.drain_s"]),
        ("127.0.0.1:50051", "127.0.0.1:50052", ["service.listen"]),
        ("10.0.0.2:80", "10.0.0.9:80", ["pools[0].endpoints"]),
        ("[c]", "[c]\n    engine: vllm", ["pools[1].engine"]),
        ("[c]", "[c]\n    circuit_breakers: {max_requests: 7}", ["pools[1].circuit_breakers"]),
        ("name: code", "name: codes", ["pools (their names and order)"]),
    ],
)
def test_a_change_that_needs_a_restart(
    path: Path, old: str, new: str, named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Refused whole, and named."""
    app, _ = app_of()
    changed = BASE.replace(old, new, 1)
    assert restart_needed(app.config, loads(changed)) == named
    config = app.config
    assert not reload(app, path, changed.replace("least_work", "random"))
    assert app.config is config
    assert app.scheduler.fleet.pools["chat"].strategy == "least_work"
    assert caplog.records[-1].message.endswith(": needs a restart: " + ", ".join(named))


def test_what_was_refused_before_an_envoy_came_is_read_again_when_one_comes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that has begun anew knows no Envoy for a moment; a file that came then is not lost."""
    app, _ = app_of()
    new = "  - {name: more, models: [x], endpoints: [{address: '10.0.0.7:80'}]}\ntenants:"
    path.write_text(BASE.replace("tenants:", new, 1), encoding="utf-8")

    async def scene() -> None:
        assert not await app.reload_live(path)
        await app._take_after_all()
        assert [pool.name for pool in app.config.pools] == ["chat", "code"]
        monkeypatch.setattr(Roster, "live", True)
        await app._take_after_all()
        assert [pool.name for pool in app.config.pools] == ["chat", "code", "more"]
        applied = app.scheduler.counts["reload.applied"]
        await app._take_after_all()
        assert app.scheduler.counts["reload.applied"] == applied == 1

    asyncio.run(scene())


def test_a_pool_that_leaves(path: Path) -> None:
    """Named as a change of the pools' names."""
    app, _ = app_of()
    fewer = BASE.replace('  - name: code\n    models: [c]\n    endpoints: [{address: "10.0.0.3:80"}]\n', "")
    assert restart_needed(app.config, loads(fewer)) == ["pools (their names and order)"]


def test_the_pool_that_envoy_fails_open_to() -> None:
    """The default model is the service's alone, unless Envoy falls back on its pool."""
    closed = loads(BASE)
    other = BASE.replace("auth: api_key", "auth: api_key, default_model: c")
    assert restart_needed(closed, loads(other)) == []
    opened, other = (text.replace("auth:", "failure_mode: open, auth:", 1) for text in (BASE, other))
    (named,) = restart_needed(loads(opened), loads(other))
    assert named.startswith("gateway.default_model")


def test_a_file_that_is_merely_bad_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Envoy that comes mends no mistake: it is said once, until somebody writes the file anew."""
    app, _ = app_of()
    path.write_text(BASE.replace("least_work", "no_such"), encoding="utf-8")

    async def scene() -> None:
        assert not await app.reload_live(path)
        monkeypatch.setattr(Roster, "live", True)
        await app._take_after_all()
        assert app.scheduler.counts["reload.refused"] == 1

    asyncio.run(scene())


def test_what_applies_live(path: Path) -> None:
    """Tenants, keys, strategies, aliases, limits and the default model; the books stay."""
    app, _ = app_of()
    reservation = admitted(app)
    calibration = app.scheduler.fleet.pools["chat"].calibration
    changed = (
        BASE.replace("[m]", "[m, alias]")
        .replace("strategy: least_work", "strategy: random")
        .replace("auth: api_key", "auth: api_key, default_model: alias, extra_routes: [/ping]")
        .replace(
            "reservation_ttl_s: 60",
            "reservation_ttl_s: 30, settled_remembered_max: 2048, decisions_concurrent_max: 9, "
            "large_bytes_per_second: 70_000",
        )
        .replace(hash_key("a-key"), hash_key("b-key"))
    )
    changed += f"  - name: globex\n    keys: [{{sha256: {hash_key('g-key')}}}]\n"
    changed += "routes: [{path: /own, work: embedding, dialect: tgi, model: {header: x-own}}]\n"
    assert reload(app, path, changed)

    def identify(key: str) -> object:
        return app.processor.directory.identify(Credentials(api_key=key), now_s=0)

    assert isinstance(identify("a-key"), Reject), "a removed key opens nothing"
    assert not isinstance(identify("b-key"), Reject)
    assert not isinstance(identify("g-key"), Reject)
    pool = app.scheduler.fleet.pool_for("alias", "a")
    assert pool is not None
    assert (pool.strategy, pool.calibration) == ("random", calibration)
    assert app.scheduler.settings.default_model == "alias"
    assert app.processor.decisions_concurrent_max == 9
    assert list(app.processor.extra_routes) == ["/ping", "/own"]
    assert app.processor.model_headers == {"x-own"}
    assert app.processor.body_rate.bytes_per_second == 70_000
    assert (app.scheduler.ledger.ttl_ns, app.scheduler.ledger.remembered_max) == (30 * S, 2048)
    assert isinstance(app.requests.quotas, ExactBooks)
    assert app.requests.quotas.limits == QuotaLimits(reservation_ttl_ns=30 * S, ended_remembered_max=2048)
    assert app.scheduler.fleet.endpoints[0].requests == 1
    app.settle(Outcome(reservation=reservation, final=True, status=200, served_by=reservation.address))
    assert app.scheduler.fleet.endpoints[0].requests == 0
    assert app.scheduler.counts["reload.applied"] == 1


def test_auth_can_be_switched_live(path: Path) -> None:
    """It is the service's alone."""
    app, _ = app_of()
    assert reload(app, path, BASE.replace("auth: api_key", "auth: none"))
    assert not isinstance(app.processor.directory.identify(Credentials(), now_s=0), Reject)


def test_a_running_service(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Serves, expires what is not heard of, outlives a failing tick, reloads on SIGHUP, drains on SIGTERM."""
    monkeypatch.setattr("extproc.core.scheduler.ROUND_NS", 10_000_000)
    monkeypatch.setattr("extproc.service.schedule.ROUND_NS", 10_000_000)
    caplog.set_level(logging.CRITICAL)
    text = BASE.replace('["127.0.0.1:50051"]', f'["unix:{path.parent}/s.sock"], drain_quiet_s: 0.01')
    app, clock = app_of(text)

    path.write_text(text.replace("least_work", "random"), encoding="utf-8")

    async def play() -> None:
        await app.start()
        running = asyncio.create_task(app.run(config_file=path))
        async with grpc.aio.insecure_channel(f"unix:{path.parent}/s.orders.sock") as channel:
            get = channel.unary_unary(f"/{STATUS}/Get")
            assert json.loads(await get(b"", timeout=PATIENCE_S))["instance"] == app.scheduler.instance

            def broken(**_: int) -> list[Reservation]:
                raise ZeroDivisionError("a fault of ours")

            with monkeypatch.context() as patch:
                patch.setattr(app.scheduler.settlement, "expire", broken)
                clock.now_ns += S
                await until(lambda: app.scheduler.counts["exception.expiry"])
            admitted(app)
            clock.now_ns += 61 * S
            await until(lambda: app.scheduler.counts["expired"])
            assert len(app.scheduler.ledger) == 0

            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: app.scheduler.counts["reload.applied"])
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(running, PATIENCE_S)

    asyncio.run(play())
