"""`steersman init` and then `up`: from addresses to an answer, with nothing written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway import Child, free_ports, wait_for
from openai import OpenAI
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / ".weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def steersman(*arguments: str) -> str:
    """The command's standard output; it must succeed."""
    base = [sys.executable, "-m", "extproc.cli"]
    done = subprocess.run([*base, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def begun(folder: Path, *backends: str) -> tuple[Path, dict[str, Any]]:
    """What init wrote and told, moved to ports that are free for this test alone."""
    file = folder / "steersman.yaml"
    told = json.loads(steersman("init", *backends, "-o", str(file), "--json"))
    config = yaml.safe_load(file.read_text())
    listen, admin, service = (f"127.0.0.1:{port}" for port in free_ports(3))
    text = file.read_text().replace(config["gateway"]["listen"], listen)
    text = text.replace(config["gateway"]["envoy_admin"], admin).replace(
        config["service"]["listen"][0], service
    )
    file.write_text(text)
    told["url"] = f"http://{listen}"
    return file, told


def served(folder: Path, file: Path) -> Iterator[Child]:
    """`steersman up` of a file, until the test is over."""
    up = Child(
        "up",
        [sys.executable, "-m", "extproc.cli", "up", "-f", str(file), "--no-table", "--concurrency", "1"],
        folder,
    )
    up.start()
    try:
        wait_for("up", lambda: "serving at" in up.log.read_text(errors="replace"), timeout_s=60)
        yield up
    finally:
        up.stop()


def answer(told: dict[str, Any], model: str) -> str:
    """A chat through the gateway with the key that init showed."""
    client = OpenAI(base_url=f"{told['url']}/v1", api_key=told["key"], max_retries=2, timeout=60)
    messages: Any = [{"role": "user", "content": "Say hello."}]
    found = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
    return found.choices[0].message.content or ""


def test_from_two_replicas_to_an_answer(tmp_path: Path) -> None:
    """init, check, up, a prompt by the new key, doctor: all well, and no other step."""
    with Replicas(specs(2)) as replicas:
        file, told = begun(tmp_path, *replicas.addresses)
        assert [pool["models"] for pool in told["pools"]] == [["tiny-chat"]]
        steersman("check", "-f", str(file))
        for _ in served(tmp_path, file):
            assert answer(told, "tiny-chat")
            report = json.loads(steersman("doctor", "-f", str(file), "--key", told["key"], "--json"))
            assert report["well"]
            assert "service.probe" in report["passed"]


@pytest.mark.engine
def test_from_a_real_engine_to_an_answer(tmp_path: Path) -> None:
    """llama.cpp's own server: its slots are the permits, its alias the model."""
    try:
        import xllamacpp  # noqa: F401  (whether it is there)

        missing = "" if WEIGHTS.exists() else f"no weights at {WEIGHTS}: make weights"
    except ImportError:
        missing = "xllamacpp is not installed: make setup"
    if missing:
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    port = free_ports(1)[0]
    script = Path(__file__).parent / "engine_server.py"
    engine = Child("engine", [sys.executable, str(script), str(WEIGHTS), str(port)], tmp_path)
    engine.start()
    try:
        wait_for(
            "the engine", lambda: "listening on http" in engine.log.read_text(errors="replace"), timeout_s=60
        )
        file, told = begun(tmp_path, f"127.0.0.1:{port}")
        (pool,) = told["pools"]
        assert (pool["engine"], pool["models"]) == ("llamacpp", ["smollm2"])
        assert pool["endpoints"][0]["max_concurrent"] == 2
        for _ in served(tmp_path, file):
            assert answer(told, "smollm2")
            report = json.loads(steersman("doctor", "-f", str(file), "--json"))
            assert [each for each in report["findings"] if each["severity"] == "error"] == []
    finally:
        engine.stop()
