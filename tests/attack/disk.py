"""A disk that is full: a small file system of one's own, in a mount namespace that ends with its process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gateway import Gateway, wait_for
from processes import Child
from replicas import Replicas, specs

from tests.attack.report import Report, attack
from tests.attack.small_disk import broken_lines, fill
from tests.attack.stand import Stand

HERE = Path(__file__).parent
SIZE_KB = 400


def inside(folder: Path, command: list[str]) -> list[str]:
    """The command with a small file system at `folder`; only it and its children see it."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mount = f'mount -t tmpfs -o size={SIZE_KB}k none "$0" && exec "$@"'
    return [*unshare, "sh", "-c", mount, str(folder), *command]


def possible(folder: Path) -> bool:
    """Whether this machine lets us have one."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(inside(folder, ["true"]), capture_output=True, check=False).returncode
    )


def on_a_full_disk(folder: Path) -> dict[str, Any]:
    """What small_disk.py found inside of one."""
    done = subprocess.run(
        inside(folder, [sys.executable, "-m", "tests.attack.small_disk", str(folder)]),
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@attack("a full disk costs lines, never halves of lines, decisions, or a log of its own", quick=False)
def full_disk(_: Stand, full: bool) -> Report:
    report = Report()
    with Replicas(specs(1)) as replicas:
        gateway = Gateway(
            {"chat": {"models": ["tiny-chat"], "addresses": replicas.addresses}},
            analytics={"dir": "small", "flush_s": 0.5},
        )
        small = gateway.folder / "small"
        small.mkdir()
        if not possible(small):
            report.notes.append("this machine lets us have no file system of our own")
            return report
        gateway.config["audit"] = {"file": str(small / "audit.jsonl"), "bytes_max": 65_536}
        gateway.config["record"] = {"file": str(small / "record.jsonl"), "bytes_max": 65_536}
        gateway.config["analytics"]["dir"] = str(small)
        gateway.write_config()
        serve = [sys.executable, "-m", "extproc.cli", "serve", "-f", str(gateway.config_file)]
        gateway.service = Child("service", inside(small, serve), gateway.folder)
        gateway.services[0] = gateway.service

        def load(seconds: float) -> None:
            end_s = time.monotonic() + seconds
            body = {"inputs": "[[sim:out=2]]", "parameters": {"max_new_tokens": 2}}
            while time.monotonic() < end_s:
                report.victim[gateway.call("/generate", body)[0]] += 1
                report.answer(gateway.call("/generate", body, key="wrong")[0])

        with gateway:
            seen = Path(f"/proc/{gateway.service.pid}/root{small}")
            load(2)
            wait_for("lines", lambda: (seen / "audit.jsonl").stat().st_size)
            fill(seen)
            load(10 if full else 3)
            wait_for("the trouble", lambda: gateway.status()["record"]["lost"])
            torn = broken_lines(seen)
            (seen / "filler").unlink()
            load(2)
            wait_for(
                "the end of the trouble", lambda: "can be written again" in gateway.service.log.read_text()
            )
            torn |= broken_lines(seen)
            text = gateway.service.log.read_text()
            report.notes.append(
                f"{text.count('cannot be written')} lines said so, {gateway.status()['record']}"
            )
            report.holds(not torn, f"halves of lines: {torn}")
            report.holds(text.count("Traceback") == 0, f"{text.count('Traceback')} tracebacks in the log")
            report.holds(text.count("cannot be written") <= 6, "the log is full of it")
            report.holds(set(report.victim) <= {200}, f"the victim got {dict(report.victim)}")
    return report
