"""The service's side of online tuning, with the real scheduler, history and audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import load, loads
from extproc.config.model import Config
from extproc.core.outcome import End, Outcome
from extproc.history.versions import ConfigHistory
from extproc.observe.audit import AuditLog
from extproc.service.build import policy_of, pool_specs
from extproc.service.tuner import TunerPart
from extproc.tuning.online import Move
from tests.stand.schedulers import make_reservation, make_scheduler, make_settled

S = 1_000_000_000
TEXT = """\
# Ours.
gateway: {auth: none}
audit: {file: AUDIT}
tuning: {enabled: true, window_s: 10, every_s: 10, requests_min: 20, parameters: [queue_tokens]}  # careful
pools:
  - {name: chat, models: [m], endpoints: [{address: 127.0.0.1:8000}]}
"""


class Service:
    """What the app does, without its sockets."""

    def __init__(self, folder: Path, text: str = TEXT) -> None:
        self.file = folder / "steersman.yaml"
        self.file.write_text(text.replace("AUDIT", str(folder / "audit.jsonl")))
        self.config = load(self.file)
        self.scheduler = make_scheduler(
            *pool_specs(self.config), instance="one", policy=policy_of(self.config)
        )
        self.audit = AuditLog(self.config.audit)
        self.tuned = TunerPart(self.config, self.audit)
        self.tuned.file = self.file
        self.now_ns = S

    def window(self, attained: int, *, of: int = 200, failed: int = 0) -> Move | None:
        """A window of traffic; the move that came of it, recorded and applied."""
        self.tuned.move(now_ns=self.now_ns)
        for i in range(of):
            self.now_ns += 10 * S // of
            self.tuned.settled(
                make_settled(outcome(good=i < attained, failed=i >= of - failed)), now_ns=self.now_ns
            )
        self.now_ns += S
        move = self.tuned.move(now_ns=self.now_ns)
        if move is not None:
            recorded = self.tuned.record(move)
            self.config = self.tuned.done(move, self.config, recorded=recorded) or self.config
            self.audit.flush(last=True)
        return move

    def versions(self) -> list[tuple[str, str, Any]]:
        """Who, by what, and the parameter that the version has."""
        reading = ConfigHistory(self.file).read()
        assert reading.problems == []
        return [(each.who, each.command, queue_tokens(loads(each.text))) for each in reading.entries]


def queue_tokens(config: Config) -> Any:
    return config.pools[0].strategy_parameters.get("steer", {}).get("queue_tokens")


def outcome(*, good: bool, failed: bool = False, pool: str = "chat", duration_ms: int = 10) -> Outcome:
    return Outcome(
        reservation=make_reservation(
            id="one-1",
            tenant="a",
            pool=pool,
            address="127.0.0.1:8000",
            input_tokens=10,
            output_tokens=2,
            prompt_bytes=9,
            stream=True,
        ),
        final=True,
        end=End.ERROR if failed else End.OK,
        duration_ns=duration_ms * 1_000_000,
        ttft_ns=1_000_000 if good else 2_000_000_000,
        prompt_tokens=10,
        output_tokens=2,
    )


def test_a_gain_is_kept_and_a_loss_taken_back(tmp_path: Path) -> None:
    """Each move is a line of the audit log, with its reason; none is a version of the file."""
    service = Service(tmp_path)
    before = service.file.read_text()
    assert service.window(150) is not None
    assert queue_tokens(service.config) == 1_280
    kept = service.window(180)
    assert kept is not None
    assert kept.kind == "keep"
    assert service.window(180) is not None
    assert queue_tokens(service.config) == 1_600
    back = service.window(100)
    assert back is not None
    assert back.kind == "revert"
    assert queue_tokens(service.config) == 1_280
    assert service.file.read_text() == before
    assert not ConfigHistory(service.file).exists, "what never stood in the file is no version of it"
    told = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(each["event"], each["stage"], each["after"]) for each in told] == [
        ("tuning", "try", 1_280),
        ("tuning", "keep", 1_280),
        ("tuning", "try", 1_600),
        ("tuning", "revert", 1_280),
    ]
    assert told[-1]["why"] == "attainment fell from 0.9000 to 0.5000"


def test_what_is_kept_is_written_where_that_is_wanted(tmp_path: Path) -> None:
    """Into its line alone; what is only tried is not. The reload that follows changes nothing."""
    service = Service(tmp_path, TEXT.replace("enabled: true", "enabled: true, write: true"))
    service.window(150)
    assert queue_tokens(load(service.file)) is None
    service.window(180)
    assert queue_tokens(load(service.file)) == 1_280
    assert "# careful" in service.file.read_text()
    assert service.versions() == [("", "found", None), ("tuner", "tuning keep", 1_280)]
    service.window(180)
    assert queue_tokens(service.config) == 1_600
    again = service.tuned.overlaid(load(service.file))
    assert queue_tokens(again) == 1_600
    assert service.tuned.status()["trying"] == "queue_tokens"


def test_a_reload_keeps_what_was_tuned(tmp_path: Path) -> None:
    """Unless the file has other parameters now, or turns tuning off."""
    service = Service(tmp_path)
    service.window(150)
    service.window(180)
    other = load(service.file).model_copy(update={"classes": service.config.classes})
    assert queue_tokens(service.tuned.overlaid(other)) == 1_280
    changed = service.file.read_text().replace(
        "models: [m]", "models: [m], strategy_parameters: {steer: {queue_tokens: 512}}"
    )
    assert queue_tokens(service.tuned.overlaid(loads(changed))) == 512
    assert service.tuned.status()["values"] == {"queue_tokens": 512}
    off = loads(changed.replace("enabled: true", "enabled: false"))
    assert service.tuned.overlaid(off) is off
    assert service.tuned.status() == {"on": False}


def test_what_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning; what is kept stays in force. Without a file nothing is tried."""
    service = Service(tmp_path, TEXT.replace("enabled: true", "enabled: true, write: true"))
    ConfigHistory(service.file).path.mkdir()
    for attained in (150, 180, 180, 200):
        assert service.window(attained) is not None
    assert queue_tokens(service.config) == 1_600
    assert queue_tokens(load(service.file)) is None
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1
    service.tuned.file = None
    assert not service.tuned.on
    assert service.window(150) is None


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("enabled: true", "enabled: false"),
        TEXT.replace("models: [m]", "models: [m], strategy: round_robin"),
        TEXT.replace("enabled: true", "enabled: true, strategy: round_robin").replace(
            ", parameters: [queue_tokens]", ""
        ),
    ],
)
def test_off(tmp_path: Path, text: str) -> None:
    """By default, while the pool uses another strategy, and for one without parameters."""
    service = Service(tmp_path, text)
    assert not service.tuned.on
    assert service.window(10) is None
    assert not ConfigHistory(service.file).exists


def test_harm_ends_a_trial_in_its_window(tmp_path: Path) -> None:
    """Nobody waits for the window's end."""
    service = Service(tmp_path)
    service.window(190)
    service.now_ns += S
    for _ in range(40):
        service.now_ns += S // 10
        service.tuned.settled(make_settled(outcome(good=False)), now_ns=service.now_ns)
    move = service.tuned.move(now_ns=service.now_ns)
    assert move is not None
    assert move.kind == "revert"


def test_a_window_counts_its_own_requests(tmp_path: Path) -> None:
    """Not another pool's, not those that came before it, not those whose client left."""
    service = Service(tmp_path)
    service.tuned.move(now_ns=service.now_ns)
    service.now_ns += S
    service.tuned.settled(make_settled(outcome(good=True)), now_ns=service.now_ns)
    service.tuned.settled(make_settled(outcome(good=True, pool="other")), now_ns=service.now_ns)
    service.tuned.settled(make_settled(outcome(good=True, duration_ms=1_500)), now_ns=service.now_ns)
    seen = service.tuned._count.window()
    assert (seen.requests, seen.attained, seen.ttft_p99_ms) == (1, 1, 1.0)
