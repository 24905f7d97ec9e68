from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from extproc.cli import group
from extproc.cli.experiment import lines_of
from extproc.config.load import load, loads
from extproc.core.outcome import End, Outcome, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import ANONYMOUS
from extproc.history.versions import ConfigHistory
from extproc.service.app import App
from tests.stand.waits import PATIENCE_S

TEXT = """\
# Ours.
gateway: {auth: none}
pools:
  - {name: chat, models: [m], endpoints: [{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]}
"""
START = ("experiment", "start", "x", "--arm", "control=steer", "--arm", "b=random")
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
S = 1_000_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "steersman.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(file: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(group, [*arguments, "-f", str(file)], env={"USER": "ann"})
    assert result.exit_code == code, result.output
    return result


def commands(file: Path) -> list[tuple[str, str, str]]:
    return [(each.who, each.command, each.why) for each in ConfigHistory(file).read().entries]


def test_it_is_written_into_the_file_and_taken_out_again(file: Path) -> None:
    """Both are versions in the history with who and why; the rest of the file is as it was."""
    arguments = ("--share", "b=10%", "--split", "session", "--guardrail", "0.02", "--hours", "2")
    run(file, *START, *arguments, "--requests", "5000", "--confidence", "0.9", "--why", "bold")
    assert file.read_text().endswith(TEXT.partition("\n")[2])
    found = load(file).experiments["x"]
    assert (found.pools, found.split, found.confidence, found.requests_max) == (
        ["chat"],
        "session",
        0.9,
        5000,
    )
    assert found.shares == {"control": 0.9, "b": 0.1}
    assert found.guardrail is not None
    assert found.guardrail.worse_by == 0.02
    assert found.ends is not None
    run(file, "experiment", "stop", "x", "--why", "seen enough")
    assert file.read_text() == TEXT
    assert commands(file)[1:] == [
        ("ann", "experiment start x", "bold"),
        ("ann", "experiment stop x", "seen enough"),
    ]


def test_an_arm_is_kept(file: Path) -> None:
    """Its strategy and parameters become the pool's."""
    run(
        file,
        "experiment",
        "start",
        "x",
        "--arm",
        "a=random",
        "--arm",
        "b=steer:queue_tokens=2048",
        "--why",
        "y",
    )
    run(file, "experiment", "start", "other", "--arm", "a=random", "--arm", "b=steer", "--why", "y", code=2)
    run(file, "experiment", "stop", "x", "--keep", "c", "--why", "y", code=2)
    run(file, "experiment", "stop", "x", "--keep", "b", "--why", "y")
    [pool] = load(file).pools
    assert (pool.strategy, pool.strategy_parameters) == ("steer", {"steer": {"queue_tokens": 2048}})
    assert load(file).experiments == {}


def test_a_shadow_alone(file: Path) -> None:
    """Needs no arms."""
    shadow = ("--shadow", "steer:queue_tokens=512,guard=false", "--shadow-share", "0.5")
    run(file, "experiment", "start", "x", *shadow, "--guardrail", "none", "--why", "y")
    found = load(file).experiments["x"]
    assert found.arms == {}
    assert found.shadow is not None
    assert (found.shadow.share, found.shadow.parameters) == (0.5, {"queue_tokens": 512, "guard": False})
    assert found.guardrail is not None
    assert found.guardrail.worse_by == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (START, "say why"),
        (("experiment", "start", "x", "--why", "y"), "nothing to compare"),
        (("experiment", "start", "x", "--arm", "a", "--why", "y"), "'a' is not NAME=STRATEGY"),
        (("experiment", "start", "x", "--arm", "a=steer", "--arm", "a=steer", "--why", "y"), "given twice"),
        (("experiment", "start", "x", "--arm", "a=steer", "--why", "y"), "has one arm alone"),
        ((*START, "--share", "c=0.1", "--why", "y"), "'c' is none of the arms control, b"),
        ((*START, "--share", "b=much", "--why", "y"), "'much' is no share"),
        ((*START, "--share", "b=0.2", "--share", "control=0.2", "--why", "y"), "the arms' shares sum to 0.4"),
        ((*START, "--share", "b=1.5", "--why", "y"), "experiments.x.arms.b.share"),
        ((*START, "--arm", "c=stear", "--why", "y"), "'stear' is not a strategy"),
        ((*START, "--arm", "c=steer:speed=9", "--why", "y"), "has no parameter 'speed'; it has: affinity_ms"),
        ((*START, "--arm", "c=steer:speed", "--why", "y"), "'speed' is not PARAMETER=VALUE"),
        ((*START, "--pool", "code", "--why", "y"), "there is no pool 'code'; there are chat"),
        ((*START, "--shadow-share", "0.5", "--why", "y"), "--shadow-share without --shadow"),
        (("experiment", "stop", "x", "--why", "y"), "no experiment 'x'"),
    ],
)
def test_mistakes(file: Path, arguments: tuple[str, ...], said: str) -> None:
    """Each is said with what to write instead; exit code 2, and nothing is changed."""
    assert said in run(file, *arguments, code=2).output
    assert file.read_text() == TEXT


def test_a_name_is_taken_once(file: Path) -> None:
    """And so is a pool."""
    run(file, *START, "--why", "y")
    assert "there is an experiment 'x' already" in run(file, *START, "--why", "y", code=2).output
    again = ("experiment", "start", "z", "--shadow", "random", "--why", "y")
    said = run(file, *again, code=2).output
    assert "pool 'chat' is in experiment 'x' already; stop that one first" in said


def test_no_service_answers() -> None:
    """Exit code 1, and where it was looked for."""
    result = CliRunner().invoke(group, ["experiment", "status", "--address", "127.0.0.1:9"])
    assert result.exit_code == 1
    assert "127.0.0.1:9" in result.output


class Wall:
    """Both clocks as the test says."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * S

    def __call__(self) -> int:
        return self.now_ns


def experiment_in(text: str, **section: Any) -> str:
    data = yaml.safe_load(text)
    data["experiments"] = {"x": {"pools": ["chat"], **section}}
    return yaml.safe_dump(data, sort_keys=False)


ARMS = {"control": {"strategy": "least_request"}, "b": {"strategy": "random"}}


def lose(app: App, clock: Wall, *, requests: int = 400) -> None:
    """Arm b fails always, the control never."""
    for _ in range(requests):
        clock.now_ns += S
        decision = app.scheduler.admit(CHAT, ANONYMOUS, now_ns=clock.now_ns)
        assert isinstance(decision, Routed)
        reservation = decision.reservation
        facts: dict[str, Any] = {"end": End.ERROR} if reservation.arm == "x/b" else {"duration_ns": 1}
        app.settle(Outcome(reservation=reservation, final=True, status=200, **facts))
        app.experimenting.step(now_ns=clock.now_ns)


def test_the_guardrail_writes_what_it_did(file: Path) -> None:
    """Into the file, the history and the audit log; a reload, and a new process, hold to it."""
    audit = file.parent / "audit.jsonl"
    text = experiment_in(TEXT + f"audit: {{file: {audit}}}\n", arms=ARMS)
    file.write_text(text, encoding="utf-8")
    clock = Wall()
    app = App(load(file), clock=clock)
    app.experimenting.file = file
    lose(app, clock)
    assert app.scheduler.counts["experiment.arm_stopped"] == 1
    assert app.experimenting.waiting
    app.experimenting.write()
    stopped = load(file).experiments["x"].arms["b"].stopped
    assert stopped is not None
    assert "points" in stopped
    assert commands(file)[-1] == ("steersman", "experiment guardrail", f"x: b: {stopped}")
    app.audit.flush(last=True)
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(each["event"], each["arm"]) for each in events] == [("experiment_arm_stopped", "b")]
    counted = app.view.whole()["experiments"][0]["arms"][0]["requests"]  # type: ignore[index]  # status is plain values
    assert app.reload(file)
    assert app.view.whole()["experiments"][0]["arms"][0]["requests"] == counted  # type: ignore[index]  # the same
    assert (
        App(load(file), clock=clock).scheduler.experiments.view(now_ns=0)[0]["arms"][1]["stopped"] == stopped
    )


def test_a_file_that_cannot_be_written_costs_the_record_alone(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The arm stays stopped here, and the log says that it is not written."""
    clock = Wall()
    app = App(loads(experiment_in(TEXT, arms=ARMS)), clock=clock)
    app.experimenting.file = file.parent / "nowhere" / "steersman.yaml"
    lose(app, clock)
    app.experimenting.write()
    assert "could not be written" in caplog.text
    assert app.scheduler.experiments.view(now_ns=0)[0]["arms"][1]["stopped"]


def test_times_are_the_wall_clock_s() -> None:
    """`starts` and `ends` are held against the service's own clock."""
    arms = {"starts": "2026-01-01T00:00:10Z", "ends": "2026-01-01T00:00:20Z", "arms": ARMS}
    app = App(loads(experiment_in(TEXT, **arms)), clock=Wall())
    from extproc.service.experiments import experiments_of

    [found] = experiments_of(app.config, now_ns=5 * S, wall_s=1_767_225_600.0)
    assert (found.start_ns, found.end_ns) == (15 * S, 25 * S)


@contextmanager
def serving(app: App) -> Iterator[str]:
    """The app on a loop of its own; yields its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        [address] = asyncio.run_coroutine_threadsafe(app.start(), loop).result(PATIENCE_S)
        yield address
    finally:
        assert app.server is not None
        asyncio.run_coroutine_threadsafe(app.roster.stop(), loop).result(PATIENCE_S)
        asyncio.run_coroutine_threadsafe(app.operating.stop(), loop).result(PATIENCE_S)
        asyncio.run_coroutine_threadsafe(app.server.drain(0.0), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


def test_status_of_a_running_service(tmp_path: Path) -> None:
    """Both arms with intervals, a sentence, the shadow; an unknown name says what there is."""
    text = experiment_in(TEXT, arms=ARMS, shadow={"strategy": "random", "share": 1.0})
    text += f"service: {{listen: ['unix:{tmp_path}/s']}}\n"
    clock = Wall()
    app = App(loads(text), clock=clock)
    lose(app, clock)
    with serving(app) as address:
        invoke = CliRunner().invoke
        shown = invoke(group, ["experiment", "status", "--address", address])
        assert shown.exit_code == 0, shown.output
        assert "x: running on chat, split by request" in shown.output
        assert "b (stopped)" in shown.output
        assert "b was stopped: " in shown.output
        assert "shadow random: asked " in shown.output
        plain = json.loads(
            invoke(group, ["experiment", "status", "x", "--json", "--address", address]).output
        )
        [control, b] = plain["experiments"][0]["arms"]
        assert control["attainment"]["mean"] == 1.0
        assert b["error_share"]["mean"] == 1.0
        assert b["error_share"]["low"] > control["error_share"]["high"]
        missing = invoke(group, ["experiment", "status", "y", "--address", address])
        assert (missing.exit_code, missing.output) == (1, "Error: no experiment 'y' here; there are x\n")
        whole = invoke(group, ["status", "--address", address])
        assert "experiment x (running): control 50%, b 50% stopped, shadow random" in whole.output


def test_an_experiment_without_results_is_drawn() -> None:
    """Dashes, and that nothing can be said yet."""
    app = App(loads(experiment_in(TEXT, arms=ARMS, split="tenant")), clock=Wall())
    text = "\n".join(lines_of(app.experimenting.status()[0]))
    assert "cannot be compared yet" in text
    assert "each tenant counts once" in text
