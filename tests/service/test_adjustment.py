from __future__ import annotations

from extproc.config.load import loads
from extproc.core.outcome import Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant
from extproc.service.app import App

TEXT = """
pools: [{name: p, models: [m], endpoints: [{address: 127.0.0.1:1, max_concurrent: 60000}]}]
tenants:
  - name: t
    keys: [{sha256: b8cec3233078f4557e6656104cbcb2283ee9e4ae8eee28c1d7cc81f977c25497}]
    quota: {requests_per_minute: 10}
    adjust: {least: 0.5, most: 1.5}
"""
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=4)
MINUTE_NS = 60_000_000_000


def spent(app: App, requests: int, now_ns: int) -> int:
    """How many of so many requests are let in."""
    decisions = [app.scheduler.admit(CHAT, Tenant(name="t"), now_ns=now_ns) for _ in range(requests)]
    return sum(isinstance(decision, Routed) for decision in decisions)


def test_limits_grow_under_refusals_and_what_was_added_goes_when_idle() -> None:
    """A tenant that is refused gets more, up to the bound; one that rests has in the end what it bought."""
    app = App(loads(TEXT))
    now_ns = MINUTE_NS
    assert spent(app, 20, now_ns) == 10
    for _ in range(30):
        app.adjusting.step(now_ns=now_ns)
        now_ns += MINUTE_NS
        spent(app, 30, now_ns)
    assert app.adjusting.factors == {"t": 1.5}
    for _ in range(200):
        now_ns += MINUTE_NS
        app.adjusting.step(now_ns=now_ns)
    assert app.adjusting.factors == {"t": 1.0}
    assert spent(app, 20, now_ns + MINUTE_NS) == 10


def test_below_what_was_bought_only_after_a_quiet_week() -> None:
    """Where the file says `least: 0.5`: not within days; then a tenth a day; back at the first refusals."""
    app = App(loads(TEXT))
    now_ns, hour_ns = MINUTE_NS, 60 * MINUTE_NS

    def rest(days: int) -> None:
        nonlocal now_ns
        for _ in range(24 * days):
            app.adjusting.step(now_ns=now_ns, interval_ns=hour_ns)
            now_ns += hour_ns

    rest(6)
    assert set(app.adjusting.factors.values()) <= {1.0}
    rest(3)
    assert 0.75 <= app.adjusting.factors["t"] < 1.0
    rest(20)
    assert app.adjusting.factors == {"t": 0.5}
    assert spent(app, 20, now_ns) == 5
    app.adjusting.step(now_ns=now_ns, interval_ns=hour_ns)
    assert app.adjusting.factors["t"] >= 1.0
