"""Keys that anybody can guess open nothing: the file that has one's hash is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from extproc.config.load import ConfigError, loads
from extproc.config.types import HASH_PLACEHOLDER, WEAK_KEYS

FILE = """
pools:
  - name: p
    models: [m]
    endpoints: [{{address: 127.0.0.1:1}}]
tenants:
  - name: t
    keys:
      - sha256: {hash}
"""


@pytest.mark.parametrize("end", ["", "\n"], ids=["plain", "as echo hashes it"])
@pytest.mark.parametrize("key", WEAK_KEYS)
def test_the_hash_of_a_well_known_word_is_refused(key: str, end: str) -> None:
    """Whoever guesses begins with these; which one it is, is not repeated."""
    digest = hashlib.sha256(f"{key}{end}".encode()).hexdigest()
    with pytest.raises(ConfigError) as caught:
        loads(FILE.format(hash=digest))
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (9, "tenants[0].keys[0].sha256")
    assert problem.message == (
        "is the hash of a well-known word, which anybody can guess; make a key with "
        "'steersman tenant key new'"
    )


def test_a_key_of_chance_is_taken() -> None:
    """What `steersman tenant key new` prints."""
    digest = hashlib.sha256(b"sk-steer-hYeJ9ln5wmMcRuidzIIzPi47VXexAw0QST66QlxBcMo").hexdigest()
    assert loads(FILE.format(hash=digest)).tenants[0].keys[0].sha256 == digest


@pytest.mark.parametrize("command", ["check", "serve", "up"])
def test_no_command_starts_with_the_placeholder(command: str, tmp_path: Path) -> None:
    """Exit 2, and one line that names the file, the line, the setting and the command that mends it."""
    file = tmp_path / "steersman.yaml"
    file.write_text(FILE.format(hash=HASH_PLACEHOLDER), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "extproc.cli", command, "-f", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "placeholder" in line]
    assert line.startswith(f"{file}:9: tenants[0].keys[0].sha256: ")
    assert "run 'steersman tenant key new'" in line
