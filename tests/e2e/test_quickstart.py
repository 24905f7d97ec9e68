"""docs/quickstart.md to the letter: its commands, in its terminals, in its order, to a first answer.

What a reader puts in is put in here too: the key that was printed, and ports that are free.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from gateway import envoy_binary, free_ports, listens, wait_for
from terminals import Terminal

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "quickstart.md"
WEIGHTS = ROOT / ".weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"
#: The environment and the weights that a checkout has when this test runs are what these two make.
MADE_BEFORE = ("python3 -m venv .venv", "make weights")
PLACEHOLDER = "sk-steer-…"


def steps(section: str) -> list[str]:
    """The shell blocks of a section, as they stand."""
    (body,) = re.findall(
        rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return [block for _, block in re.findall(r"^```(sh)\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)]


@contextmanager
def terminals(folder: Path, path: str) -> Iterator[dict[str, Terminal]]:
    """Three of them, beside each other, in the folder of the clone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STEERSMAN_")}
    kept |= {"PATH": f"{path}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
    opened = {f"terminal {i}": Terminal(f"terminal-{i}", folder, kept) for i in (1, 2, 3)}
    try:
        yield opened
    except BaseException:
        for name, each in opened.items():
            print(f"--- {name}\n{each.output()[-6000:]}")
        raise
    finally:
        for each in reversed(opened.values()):
            each.close()


def through(folder: Path, path: str, blocks: list[str]) -> list[str]:
    """Type the blocks into their terminals; what each of the third one printed."""
    ports = dict(zip(("8080", "9001", "9002"), _ports(), strict=True))
    said: list[str] = []
    key = ""
    with terminals(folder, path) as opened:
        for block in blocks:
            text = re.sub(r"\b(8080|9001|9002)\b", lambda found: ports[found[1]], block)
            if "steersman init" in text:
                text = text.replace("steersman init", f"steersman init --listen 127.0.0.1:{ports['8080']}")
            found = re.match(r"# (terminal \d)\n", text)
            terminal = opened[found[1] if found else "terminal 3"]
            if "steersman up" in text:
                before, _, up = text.rpartition("steersman up")
                key = re.search(r"sk-steer-[\w-]+", terminal.run(before))[0]  # type: ignore[index]  # printed
                terminal.type(f"steersman up{up}")
                wait_for("up", lambda t=terminal: "serving at" in t.output(), timeout_s=240)
                # Another service of this machine may have the port at which commands look for one.
                file = folder / ("engine.yaml" if "engine.yaml" in text else "steersman.yaml")
                (address,) = yaml.safe_load(file.read_text(encoding="utf-8"))["service"]["listen"]
                opened["terminal 3"].run(f"export STEERSMAN_ADDRESS={address}")
            elif found and found[1] == "terminal 1":
                terminal.type(text)
                many = 2 if "--count 2" in text else 1
                for port in (ports["9001"], ports["9002"])[:many]:
                    wait_for(f"port {port}", lambda p=port: listens(int(p)), timeout_s=120)
            else:
                said.append(terminal.run(text.replace(PLACEHOLDER, key)))
    return said


def _ports() -> tuple[str, str, str]:
    """One for the gateway, two that follow each other for the replicas."""
    while True:
        listen, first, second = free_ports(3)
        if second == first + 1:
            return str(listen), str(first), str(second)


def answered(said: str) -> str:
    """The text of the chat answer that curl printed."""
    (chat,) = [json.loads(line) for line in re.findall(r"{.*}", said) if '"choices"' in line]
    return str(chat["choices"][0]["message"]["content"])


def clone_of(folder: Path) -> Path:
    """The checkout as it is, in a folder where files may be written: its entries, linked."""
    for each in ROOT.iterdir():
        if each.name not in ("steersman.yaml", "engine.yaml") and not each.name.startswith("steersman.yaml."):
            (folder / each.name).symlink_to(each)
    return folder


def built(section: str) -> list[str]:
    """A section's blocks but those that have made what this test itself runs from."""
    return [block for block in steps(section) if not block.startswith(MADE_BEFORE)]


def test_the_page_says_what_this_test_runs() -> None:
    """Each section's commands stand in blocks that are run here; a change of form leaves none out."""
    assert [len(steps(each)) for each in ("1. Install", "2. Start two replicas", "3. Start the gateway")] == [
        1,
        1,
        1,
    ]
    assert [len(steps(each)) for each in ("4. Ask", "5. Look", "6. A real engine")] == [1, 1, 4]
    assert len(re.findall(r"^```sh$", PAGE.read_text(), re.MULTILINE)) == 9


def test_simulated_replicas_to_a_first_answer(tmp_path: Path) -> None:
    """Sections 2 to 5: replicas, init, check, up, two curls, and every command that looks."""
    envoy_binary()
    blocks = [
        *steps("2. Start two replicas"),
        *steps("3. Start the gateway"),
        *steps("4. Ask"),
        *steps("5. Look"),
    ]
    asked, looked = through(clone_of(tmp_path), str(Path(sys.executable).parent), blocks)
    assert '"llama-3-8b"' in asked
    assert answered(asked)
    assert "llama-3-8b" in looked


def test_a_real_engine_to_a_first_answer(tmp_path: Path) -> None:
    """Section 6: llama.cpp's own server behind the gateway answers."""
    envoy_binary()
    if not WEIGHTS.exists():
        pytest.skip("no weights: make weights")
    pytest.importorskip("xllamacpp")
    (asked,) = through(clone_of(tmp_path), str(Path(sys.executable).parent), built("6. A real engine"))
    assert answered(asked)


@pytest.mark.soak
def test_from_a_clean_clone(tmp_path: Path) -> None:
    """Sections 1 to 5 with nothing but git, Python and the package index."""
    clone = tmp_path / "steersman"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True, timeout=120)
    interpreter = tmp_path / "bin"
    interpreter.mkdir()
    (interpreter / "python3").symlink_to(Path(sys.executable).resolve())
    with terminals(clone, str(interpreter)) as opened:
        opened["terminal 3"].run(steps("1. Install")[0], timeout_s=500)
    blocks = [
        *steps("2. Start two replicas"),
        *steps("3. Start the gateway"),
        *steps("4. Ask"),
        *steps("5. Look"),
    ]
    asked, _ = through(clone, str(clone / ".venv" / "bin"), blocks)
    assert answered(asked)
