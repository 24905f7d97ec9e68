"""Orders through the API: what they do, what they write, what is noted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import load, loads
from extproc.history.experiments import start_edits, stop_edits
from extproc.service.app import App

Stand = Callable[..., None]
WRITER = "writer-token-0123456789"
FILE = """# kept
gateway: {auth: none}
pools:
  - name: chat
    models: [m]
    endpoints: [{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]
"""
EXPERIMENT = {
    "pools": ["chat"],
    "arms": {"control": {"strategy": "steer"}, "other": {"strategy": "queue", "share": 0.1}},
}


def test_an_order_nested_without_end(stand: Stand, tokens: str) -> None:
    """Its sender's mistake, with no traceback of ours."""

    async def body(port: Any) -> None:
        deep = b'{"experiment":' + b'{"a":' * 5_000
        headers = {"Authorization": f"Bearer {WRITER}", "Content-Type": "application/json"}
        url = port.url + "api/v1/experiments/x/start"
        async with port.session.post(url, data=deep, headers=headers) as answer:
            found = await answer.json()
        assert (answer.status, found["error"]["code"]) == (400, "bad_request")
        assert not port.app.scheduler.counts["exception.admin /api/v1/experiments/x/start"]

    stand(body, tokens)


def test_a_drain_there_and_back(stand: Stand, tokens: str, tmp_path: Path) -> None:
    """By a writer's token; the audit log has whose it was, and who was denied."""
    audit = tmp_path / "audit.jsonl"

    async def body(port: Any) -> None:
        at = "api/v1/fleet/10.0.0.2:80/"
        endpoint = port.app.scheduler.fleet.endpoints[1]
        status, found = await port.ask("POST", at + "drain", WRITER, body={})
        assert (status, found["draining"], endpoint.draining) == (200, True, True)
        status, found = await port.ask("POST", at + "undrain", WRITER, body={})
        assert (status, found["draining"], endpoint.draining) == (200, False, False)
        status, found = await port.ask("POST", at + "clear-faults", WRITER, body={})
        assert (status, found["cleared"]) == (200, [])
        assert (await port.ask("POST", "api/v1/fleet/10.9.9.9:1/drain", WRITER, body={}))[0] == 404
        assert (await port.get("api/v1/fleet", "wrong"))[0] == 401
        port.app.audit.flush(last=True)

    stand(body, tokens, FILE + f"audit: {{file: '{audit}'}}\n")
    events = [json.loads(line) for line in audit.read_text(encoding="utf-8").splitlines()]
    orders = [(each["order"], each["token"], each["address"]) for each in events if "order" in each]
    assert orders == [(what, "writer", "10.0.0.2:80") for what in ("drain", "undrain", "clear_faults")]
    assert [each["path"] for each in events if each["event"] == "admin_denied"] == ["/api/v1/fleet"]


def test_an_experiment_is_written_into_the_file(stand: Stand, tmp_path: Path) -> None:
    """Checked whole, its comments kept, in the history with who and why; and taken out again."""
    file = tmp_path / "steersman.yaml"
    file.write_text(FILE, encoding="utf-8")

    def prepare(app: App) -> None:
        app.experimenting.file = file

    async def body(port: Any) -> None:
        at = "api/v1/experiments/try/"
        start = {"experiment": EXPERIMENT, "why": "to see"}
        status, found = await port.ask("POST", at + "start", body=start)
        assert (status, found["file"]) == (202, str(file))
        assert load(file).experiments["try"].arms["other"].share == 0.1
        assert file.read_text(encoding="utf-8").startswith("# kept\n")
        status, found = await port.ask("POST", at + "start", body=start)
        assert (status, found["error"]["code"]) == (409, "refused")
        wrong = {**EXPERIMENT, "pools": ["nowhere"]}
        status, found = await port.ask(
            "POST", "api/v1/experiments/bad/start", body={"experiment": wrong, "why": "x"}
        )
        assert status == 422
        assert "there is no pool 'nowhere'" in found["error"]["problems"][0]
        for unclear in ({"experiment": EXPERIMENT}, {**start, "why": " "}, {"why": "x", "z": 1}):
            assert (await port.ask("POST", at + "start", body=unclear))[0] == 400
        assert (await port.ask("POST", "api/v1/experiments/Bad%20Name/start", body=start))[0] == 400
        status, _ = await port.ask("POST", at + "stop", body={"why": "seen", "keep": "other"})
        assert status == 202
        config = load(file)
        assert config.experiments == {}
        assert config.pools[0].strategy == "queue"
        assert (await port.ask("POST", at + "stop", body={"why": "again"}))[0] == 409

    stand(body, ", auth: none", FILE, prepare=prepare)
    history = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file())
    assert "to see (admin port)" in history


def test_without_a_file_no_experiment_is_started(stand: Stand) -> None:
    """A service that nobody gave a file says so."""

    async def body(port: Any) -> None:
        order = {"experiment": EXPERIMENT, "why": "to see"}
        status, found = await port.ask("POST", "api/v1/experiments/try/start", body=order)
        assert (status, found["error"]["code"]) == (409, "refused")

    stand(body, ", auth: none", FILE)


def test_edits_name_what_is_not_there() -> None:
    """A name that is taken, an experiment or an arm that is none."""
    config = loads(FILE + f"experiments: {{try: {json.dumps(EXPERIMENT)}}}\n")
    with pytest.raises(ValueError, match="already"):
        start_edits(config, "try", EXPERIMENT)
    with pytest.raises(ValueError, match="there are try"):
        stop_edits(config, "other", None)
    with pytest.raises(ValueError, match="there are control, other"):
        stop_edits(config, "try", "third")
    assert len(stop_edits(config, "try", None)) == 1
    assert len(stop_edits(config, "try", "control")) == 1  # the pool's strategy is that already
