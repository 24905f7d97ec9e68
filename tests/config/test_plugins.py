"""Strategies of other distributions: one that is really installed, and broken ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from recorded_traffic import record

from extproc.cli import group
from extproc.config.load import ConfigError, loads
from extproc.config.model import Config
from extproc.config.plugins import load_strategy, strategy_names
from extproc.core.catalogue import STRATEGY_NAMES
from extproc.core.outcome import Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.strategies import STRATEGIES, parameters
from extproc.core.tenant import ANONYMOUS
from extproc.plugins import PluginError
from extproc.service.build import pool_specs
from extproc.sim.world.run import is_peer
from tests.stand.schedulers import make_scheduler

EXAMPLE = Path(__file__).parents[1] / "plugins" / "steersman-example"
NAME = "example-least-permits"
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)

Broken = Callable[..., None]


def file_of(strategy: str, parameters: str = "") -> str:
    given = f"    strategy_parameters: {{{strategy}: {{{parameters}}}}}\n" if parameters else ""
    return f"""gateway: {{auth: none}}
pools:
  - name: chat
    models: [m]
    strategy: {strategy}
{given}    endpoints: [{{address: 127.0.0.1:8000}}, {{address: 127.0.0.1:8001}}]
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example."""
    folder = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(folder), str(EXAMPLE)], check=True, timeout=120)
    return folder


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a test has registered is forgotten after it."""
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)
    for name in [name for name in sys.modules if name.startswith(("example_strategy", "broken_"))]:
        del sys.modules[name]


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is installed where this process looks."""
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Installs a distribution with a strategy `theirs` in a module of this text."""

    def install(text: str, *, distribution: str = "broken-one") -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(text)
        about = tmp_path / f"{module}-0.3.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.3\n")
        (about / "entry_points.txt").write_text(f"[steersman.strategies]\ntheirs = {module}:Theirs\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def checked(tmp_path: Path, text: str) -> Result:
    path = tmp_path / "steersman.yaml"
    path.write_text(text, encoding="utf-8")
    return CliRunner().invoke(group, ["check", "--file", str(path)])


def routed(config: Config, **permits: int) -> Routed:
    scheduler = make_scheduler(*pool_specs(config))
    for endpoint in scheduler.fleet.endpoints:
        endpoint.permits = permits.get(f"p{endpoint.address[-4:]}", 0)
    decision = scheduler.admit(CHAT, ANONYMOUS, now_ns=0)
    assert isinstance(decision, Routed)
    return decision


@pytest.mark.usefixtures("installed")
def test_a_plugin_passes_the_check(tmp_path: Path) -> None:
    """By its name, its parameters with their ranges; and it is named where strategies are."""
    done = checked(tmp_path, file_of(NAME, "health: 2"))
    assert done.exit_code == 0, done.output
    wrong = checked(tmp_path, file_of(NAME, "health: 9"))
    assert wrong.exit_code == 2
    assert f"{NAME}.health is at least 0 and at most 4, not 9" in wrong.output
    other = checked(tmp_path, file_of("example-least-permit"))
    assert other.exit_code == 2
    assert NAME in other.output
    assert strategy_names() == (NAME,)
    named = str(Config.model_json_schema())
    assert NAME in named


@pytest.mark.usefixtures("installed")
def test_a_plugin_decides() -> None:
    """The scheduler places by it, says so, and shows its terms; each pool has its own instance."""
    config = loads(file_of(NAME, "health: 0.5"))
    decision = routed(config, p8000=3)
    assert decision.addresses == ("127.0.0.1:8001", "127.0.0.1:8000")
    assert decision.reservation.strategy == NAME
    assert decision.trace is not None
    first, second = decision.trace.rows()
    assert (first.verdict, first.terms["permits"], second.verdict) == ("chosen #1", 0, "chosen #2")
    assert first.score is not None
    assert 1.0 < first.score < 1.01
    assert parameters(NAME) == {"health": (float, 1.0)}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_plugin_is_simulated(workers: str) -> None:
    """As ours are, with its parameters, in this process and in others; not as other projects' routers,
    which hold nothing and know of no permits."""
    small = ["--fleet", "2*a100-80g/llama-3-8b", "--limit", "60", "--traces", "/nonexistent", "--load", ".9"]
    options = [*small, "--strategy", f"{NAME},least_request", "--param", f"{NAME}.health=2", "--json"]
    done = CliRunner().invoke(group, ["simulate", *options, "--workers", workers])
    assert done.exit_code == 0, done.output
    theirs, ours = json.loads(done.stdout)["cells"]
    assert (theirs["strategy"], theirs["figures"]["requests"]) == (NAME, ours["figures"]["requests"])
    wrong = CliRunner().invoke(group, ["simulate", *options, "--param", f"{NAME}.health=9"])
    assert wrong.exit_code == 2
    assert f"--param: {NAME}.health is at least 0 and at most 4, not 9" in wrong.output
    assert NAME in CliRunner().invoke(group, ["simulate", "--strategy", "list"]).output
    assert not is_peer(NAME)
    assert is_peer("envoy-least-request")


@pytest.mark.usefixtures("installed")
def test_what_a_plugin_decided_is_replayed(tmp_path: Path) -> None:
    """A record of it is played as recorded, without naming it again."""
    path = tmp_path / "record.jsonl"
    assert load_strategy(NAME)
    record(path, requests=40, per_s=20.0, strategy=NAME)
    done = CliRunner().invoke(group, ["replay", str(path), "--seed", "1", "--no-fit"])
    assert done.exit_code == 0, done.output
    assert f"strategy {NAME}; seeds 1" in done.output


def test_a_broken_plugin_is_not_simulated(broken: Broken) -> None:
    """The option is named, and the distribution with what is wrong; others are still simulated."""
    broken("1/0\n")
    done = CliRunner().invoke(group, ["simulate", "--strategy", "theirs", "--limit", "5"])
    assert done.exit_code == 2
    assert "--strategy: strategy 'theirs' of the distribution broken-one 0.3 cannot be used" in done.output


def test_without_the_distribution_the_name_is_unknown(tmp_path: Path) -> None:
    """As any other name that nobody has."""
    done = checked(tmp_path, file_of(NAME))
    assert done.exit_code == 2
    assert f"'{NAME}' is not a strategy; there are steer, " in done.output
    assert strategy_names() == ()
    assert not load_strategy(NAME)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("1/0\n", "ZeroDivisionError: division by zero"),
        ("class Other: pass\n", "AttributeError: module 'broken_one' has no attribute 'Theirs'"),
        ("class Theirs: name = 'theirs'\n", "derives from extproc.core.strategies.Strategy"),
        (
            (
                "from extproc.core.strategies import Scored\nclass Theirs(Scored):\n"
                "    name = 'others'\n    def scores(self, *a): ...\n"
            ),
            "its class says that its name is 'others'",
        ),
        (
            "from extproc.core.strategies import Scored\nclass Theirs(Scored): name = 'theirs'\n",
            "lacks scores",
        ),
        (
            (
                "from dataclasses import dataclass\nfrom extproc.core.strategies import Strategy\n"
                "@dataclass\nclass Theirs(Strategy):\n    x: tuple = ()\n    name = 'theirs'\n"
                "    def rank(self, *a, **k): ...\n"
            ),
            "its parameter 'x' is a tuple",
        ),
    ],
)
def test_a_broken_plugin_is_one_clear_error(tmp_path: Path, broken: Broken, text: str, why: str) -> None:
    """It names the distribution, the setting and what is wrong; who does not use it is not stopped."""
    broken(text)
    done = checked(tmp_path, file_of("theirs"))
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if "broken-one" in line]
    assert "pools[0].strategy" in line
    assert "strategy 'theirs' of the distribution broken-one 0.3 cannot be used: " in line
    assert why in line
    assert "Traceback" not in done.output
    assert checked(tmp_path, file_of("steer")).exit_code == 0
    assert "theirs" not in STRATEGIES


def test_one_name_in_two_distributions(broken: Broken) -> None:
    """Neither is taken; both are named."""
    for distribution in ("broken-one", "broken-two"):
        broken("class Theirs: pass\n", distribution=distribution)
    with pytest.raises(
        PluginError, match=r"'theirs' is in two distributions: broken-one 0.3, broken-two 0.3"
    ):
        load_strategy("theirs")
    with pytest.raises(ConfigError, match="is in two distributions"):
        loads(file_of("theirs"))


def test_ours_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that takes one of our names is not asked."""
    about = tmp_path / "greedy-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[steersman.strategies]\nsteer = nowhere:Nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert strategy_names() == ()
    assert load_strategy("steer")
    assert loads(file_of("steer")).pools[0].strategy == STRATEGY_NAMES[0] == "steer"


def test_a_strategy_that_breaks_when_it_decides_costs_no_request(broken: Any) -> None:
    """Its fault is told, and the choice is then made by least in flight, degraded."""
    broken(
        "from extproc.core.strategies import Strategy\nclass Theirs(Strategy):\n    name = 'theirs'\n"
        "    def rank(self, *a, **k): raise RuntimeError('no idea')\n"
    )
    with pytest.raises(RuntimeError, match="no idea"):
        routed(loads(file_of("theirs")))
    scheduler = make_scheduler(*pool_specs(loads(file_of("theirs"))))
    decision = scheduler.admit(CHAT, ANONYMOUS, now_ns=0, degraded="internal error")
    assert isinstance(decision, Routed)
    assert decision.reason.text().endswith("degraded: internal error")
