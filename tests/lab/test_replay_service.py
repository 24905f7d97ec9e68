"""The service writes what a replay reads."""

from __future__ import annotations

from pathlib import Path

from extproc.config.load import load
from extproc.core.outcome import Outcome, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant
from extproc.lab.replay.log import read
from extproc.lab.replay.play import play
from extproc.lab.replay.rebuild import scene
from extproc.service.app import App

TEXT = """\
gateway: {auth: none}
record: {file: FILE}
pools:
  - {name: chat, models: [m], endpoints: [{address: 127.0.0.1:8000}]}
"""


def test_a_service_records_and_a_reload_ends_it(tmp_path: Path) -> None:
    """Requests and the fleet; without the section nobody listens to the scheduler any more."""
    file, path = tmp_path / "steersman.yaml", tmp_path / "record.jsonl"
    file.write_text(TEXT.replace("FILE", str(path)))
    now_ns = 1_000_000_000
    app = App(load(file), clock=lambda: now_ns)
    app.record.watch(app.scheduler, now_ns=now_ns)
    request = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="m", stream=True, prompt_tokens=50)
    for _ in range(3):
        routed = app.scheduler.admit(request, Tenant(name="acme"), now_ns=now_ns)
        assert isinstance(routed, Routed)
        now_ns += 50_000_000
        outcome = Outcome(
            reservation=routed.reservation,
            final=True,
            duration_ns=50_000_000,
            prompt_tokens=50,
            output_tokens=4,
        )
        app.settle(outcome)
        app.settle(outcome)
    app.record.flush()
    log = read(path)
    assert [row.outcome for row in log.rows] == ["ok"] * 3
    assert [each.outcome for each in play(scene(log))] == ["ok"] * 3
    file.write_text(TEXT.replace("record: {file: FILE}", ""))
    assert app.reload(file)
    assert app.record not in app.scheduler.events.observers
    assert app.view.whole()["record"] == {"on": False, "dropped": 0, "lost": 0}
    assert app.view.whole()["tuning"] == {"on": False}
