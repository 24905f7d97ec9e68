"""The commands of docs/deploy.md for hosts of one's own: what each needs is there by then."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

from extproc.config.load import loads
from extproc.config.types import HASH_PLACEHOLDER

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "envoy").glob("*.service"))
FILE = ROOT / "deploy" / "envoy" / "steersman.yaml"
#: Folders that every host with systemd has.
THERE = {"/etc/systemd/system", "/opt"}


def commands() -> list[list[str]]:
    """The first block under "Hosts", a command a list."""
    section = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8").partition("\n## Hosts\n")[2]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    found: list[list[str]] = []
    for line in lines:
        while "&&" in line:
            at = line.index("&&")
            found.append(line[:at])
            line = line[at + 1 :]
        found.append(line)
    return found


def unit(path: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path, encoding="utf-8")
    return parser["Service"]


def test_a_folder_is_there_before_something_is_put_into_it() -> None:
    """`cp` makes none."""
    there = set(THERE)
    for command in commands():
        if command[0] == "mkdir":
            there |= {each.rstrip("/") for each in command[1:] if not each.startswith("-")}
        elif command[1:3] == ["-m", "venv"]:
            there |= {str(Path(command[3])), str(Path(command[3]).parent)}
        elif command[0] == "cp":
            assert command[-1].rstrip("/") in there, command
            assert all(list(ROOT.glob(each)) for each in command[1:-1]), command


def test_whom_the_units_name_is_made() -> None:
    """Before anything is started."""
    users = {unit(path)["User"] for path in UNITS} | {unit(path)["Group"] for path in UNITS}
    assert len(UNITS) == 2
    made = [n for n, command in enumerate(commands()) if command[0] == "useradd"]
    started = [n for n, command in enumerate(commands()) if command[:2] == ["systemctl", "enable"]]
    names = {word for command in commands() if command[0] == "useradd" for word in command[1:]}
    assert users <= names
    assert max(made) < started[0]


def test_every_program_of_the_units_is_where_the_commands_put_it() -> None:
    """The environment's, and what was copied."""
    venv = next(command[3] for command in commands() if command[1:3] == ["-m", "venv"])
    for path in UNITS:
        for key in ("ExecStartPre", "ExecStart"):
            assert unit(path)[key].startswith(f"{venv}/bin/"), (path.name, key)
    stop = shlex.split(unit(next(path for path in UNITS if "envoy" in path.name))["ExecStop"])[1]
    copied = [
        f"{command[-1].rstrip('/')}/{Path(each).name}"
        for command in commands()
        if command[0] == "cp"
        for each in command[1:-1]
    ]
    assert stop in copied


def test_quotas_outlive_a_restart_of_the_service() -> None:
    """In the folder that its unit makes."""
    config = loads(FILE.read_text(encoding="utf-8").replace(HASH_PLACEHOLDER, "ab" * 32))
    service = unit(next(path for path in UNITS if "envoy" not in path.name))
    assert config.state.dir == f"/var/lib/{service['StateDirectory']}"
