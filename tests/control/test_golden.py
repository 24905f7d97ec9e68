"""The rendered examples: unchanged unless meant, deterministic, and accepted by the real Envoy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from extproc.config.load import load
from extproc.control.bootstrap import render_bootstrap, to_json, to_yaml
from extproc.control.resources import Mode

ENVOY_FOLDER = Path(__file__).parents[2] / "envoy"
EXAMPLES = sorted((ENVOY_FOLDER / "examples").glob("*.yaml"))
UPDATE = os.environ.get("STEERSMAN_UPDATE_GOLDEN") == "1"

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
each_mode = pytest.mark.parametrize("mode", ["static", "ads"])


@cache
def rendered(example: Path, mode: Mode) -> tuple[str, str]:
    """As YAML and as JSON."""
    bootstrap = render_bootstrap(load(example), mode)
    return to_yaml(bootstrap), to_json(bootstrap)


def golden_of(example: Path, mode: Mode) -> Path:
    name = example.name if mode == "static" else f"{example.stem}.{mode}.yaml"
    return ENVOY_FOLDER / "golden" / name


def test_there_are_examples() -> None:
    """A moved folder would make every test below vanish in silence."""
    assert {path.stem for path in EXAMPLES} == {"minimal", "full", "fail-open", "tenants"}


@each_mode
@each_example
def test_rendering_is_as_the_golden_file_says(example: Path, mode: Mode) -> None:
    """A change of Envoy's configuration shows in review as a change of these files."""
    golden = golden_of(example, mode)
    text, _ = rendered(example, mode)
    if UPDATE:
        golden.write_text(text, encoding="utf-8")
    assert golden.exists(), f"{golden} is missing; run with STEERSMAN_UPDATE_GOLDEN=1 to write it"
    assert text == golden.read_text(encoding="utf-8"), (
        f"{golden} differs; if the change is meant, run "
        "STEERSMAN_UPDATE_GOLDEN=1 pytest tests/control/test_golden.py and review the difference"
    )


@each_mode
@each_example
def test_yaml_and_json_say_the_same(example: Path, mode: Mode) -> None:
    """Both formats come from one tree."""
    as_yaml, as_json = rendered(example, mode)
    # libyaml's loader, which is the faster one.
    assert yaml.load(as_yaml, Loader=yaml.CSafeLoader) == json.loads(as_json)


@pytest.mark.envoy
@each_mode
@each_example
def test_the_real_envoy_accepts_it(example: Path, mode: Mode, envoy: str) -> None:
    """`envoy --mode validate` builds everything but sockets."""
    golden = golden_of(example, mode)
    done = subprocess.run(
        [envoy, "--mode", "validate", "--disable-hot-restart", "-c", str(golden)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Work in progress upstream, and used on purpose; a deprecation would be news.
    news = [line for line in done.stderr.splitlines() if "deprecat" in line.lower()]
    assert not news, "\n".join(news)


def test_validated_messages_render_the_same() -> None:
    """With the checks that pydantic makes of each message, which `envoy-config`, the service and the other
    tests do without (control/light.py), all are valid and equal every golden file."""
    script = """
import json, sys
from extproc.config.load import load
from extproc.control.bootstrap import render_bootstrap, to_yaml
print(json.dumps([to_yaml(render_bootstrap(load(path), mode)) for path, mode in json.loads(sys.argv[1])]))
"""
    asked = [(example, mode) for example in EXAMPLES for mode in ("static", "ads")]
    argument = json.dumps([(str(example), mode) for example, mode in asked])
    done = subprocess.run(
        [sys.executable, "-c", script, argument], capture_output=True, text=True, check=True, timeout=300
    )
    for (example, mode), text in zip(asked, json.loads(done.stdout), strict=True):
        assert text == golden_of(example, mode).read_text(encoding="utf-8"), (example.stem, mode)
