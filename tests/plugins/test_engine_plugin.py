"""An engine that a package adds, in every place where an engine is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.packages import Run, installed, runner

CONFIG = """\
gateway: {auth: none}
pools: [{name: p, models: [m], engine: mlx, endpoints: [{address: "127.0.0.1:4"}]}]
"""
USES = """
from pathlib import Path
from extproc import engines
from extproc.config.load import loads
from extproc.config.schema import schema
from extproc.core.reach import Look
from extproc.core.request import Request, limited
from extproc.doctor.backend import told
from extproc.service.probes import found
from steersman_agent.config import loads as agent
from steersman_agent.engines import adapter

assert "steersman_mlx" not in __import__("sys").modules
config = loads(Path("steersman.yaml").read_text(), name="steersman.yaml")
assert config.pools[0].engine == "mlx"
row = engines.traits_of("mlx")
assert (row.title, row.queues, row.obeys, row.strict_models) == ("MLX", False, "max_tokens", False)
assert "mlx" in engines.names() and "mlx" in str(schema())
asked = agent("services: ['h:1']\\nreplicas: [{address: '10.0.0.1:1', pool: p, engine: mlx}]")
assert adapter(asked.replicas[0].engine).scrape(b"mlx_waiting 3\\nmlx_running 2\\n").waiting == 3
seen = told("10.0.0.1:1", {"/mlx": {"mlx_version": 1, "model": "m", "slots": 7}}, health=200)
assert (seen.engine, seen.models, seen.max_concurrent) == ("mlx", ("m",), 7), seen
assert found(425, "mlx") is Look.LOADING and found(425, "vllm") is not Look.LOADING
"""


@pytest.fixture(scope="session")
def with_mlx(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python with steersman-mlx installed beside Steersman."""
    return runner(installed("steersman_mlx", tmp_path_factory.mktemp("mlx")))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that names the engine, in the working folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "steersman.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    return file


def test_it_is_known_wherever_an_engine_is(with_mlx: Run, config: Path) -> None:
    """The file, the schema, routing's row, the service's look, doctor's and init's question, and the agent;
    it is imported when the file names it, and not before."""
    done = with_mlx("-c", USES)
    assert done.returncode == 0, done.stderr


def test_commands_take_it(with_mlx: Run, config: Path) -> None:
    """`check` accepts the file, and `init` offers the name."""
    done = with_mlx("-m", "extproc.cli", "check", "-f", str(config))
    assert done.returncode == 0, done.stderr
    assert "mlx" in with_mlx("-m", "extproc.cli", "init", "--help").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlxx", "'broken', 'misspelt', 'mlx', 'unfinished' or 'wrong'; did you mean 'mlx'?"),
        ("broken", "of the distribution steersman-mlx 1.0 cannot be used: AttributeError"),
        ("unfinished", "of the distribution steersman-mlx 1.0 cannot be used: its class lacks scrape"),
        ("misspelt", "of the distribution steersman-mlx 1.0 cannot be used: its traits:"),
        (
            "wrong",
            "of the distribution steersman-mlx 1.0 cannot be used: it is no EngineAdapter",
        ),
    ],
)
def test_what_is_wrong_with_a_package_is_said(with_mlx: Run, config: Path, name: str, message: str) -> None:
    """As a mistake of the file, with the package's name; never a traceback."""
    config.write_text(CONFIG.replace("engine: mlx", f"engine: {name}"), encoding="utf-8")
    done = with_mlx("-m", "extproc.cli", "check", "-f", str(config))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_without_the_package_it_is_no_engine(config: Path) -> None:
    """The file is refused as for any other misspelt name."""
    done = runner(config.parent)("-m", "extproc.cli", "check", "-f", str(config))
    assert done.returncode == 2, done.stderr
    assert "'mlx' is not one of 'tgi', 'vllm', 'sglang' or 'llamacpp'" in done.stderr + done.stdout
