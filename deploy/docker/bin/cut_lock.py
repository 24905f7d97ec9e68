"""Cuts out of requirements/dev.lock what an image needs: `cut_lock.py [EXTRA…] < dev.lock > image.lock`.

Owns the way from pyproject.toml's extras to the lock's blocks, over the lock's own "via" remarks, so that
an image has the very versions and hashes that the tests ran with. Standard library alone: it runs before
anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_HEAD = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==")
_VIA = re.compile(r"\s+#(?: +via)? +([A-Za-z0-9._-]+)")


def _plain(name: str) -> str:
    """A package's name in the index's spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _wanted(pyproject: str, extras: list[str]) -> set[str]:
    """The names that the project itself asks for; KeyError for an extra that it does not have.

    The extra `build-system` alone is what builds the wheel.
    """
    tree = tomllib.loads(pyproject)
    project = tree["project"]
    if extras == ["build-system"]:
        lines = tree["build-system"]["requires"]
    else:
        lines = project["dependencies"] + [
            line for extra in extras for line in project["optional-dependencies"][extra]
        ]
    return {_plain(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in lines}


def cut(lock: str, wanted: set[str]) -> str:
    """The blocks of the wanted packages and of all that they need, in the lock's order."""
    blocks: list[tuple[str, set[str], list[str]]] = []
    for line in lock.splitlines():
        if head := _HEAD.match(line):
            blocks.append((_plain(head[1]), set(), [line]))
        elif via := _VIA.match(line):
            blocks[-1][1].add(_plain(via[1]))
        elif line.strip().startswith("--hash"):
            blocks[-1][2].append(line)
    kept = set(wanted)
    while more := {name for name, via, _ in blocks if via & kept} - kept:
        kept |= more
    missing = kept - {name for name, _, _ in blocks}
    if missing:
        raise SystemExit(f"the lock lacks {', '.join(sorted(missing))}; run 'make lock' first")
    return "\n".join(line for name, _, lines in blocks if name in kept for line in lines) + "\n"


if __name__ == "__main__":
    here = Path("pyproject.toml").read_text(encoding="utf-8")
    sys.stdout.write(cut(sys.stdin.read(), _wanted(here, sys.argv[1:])))
