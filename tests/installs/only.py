"""Runs in a child process: some of what is installed is as if it were not.

`python only.py < wanted.json`: `absent` are the top-level modules that are not to be found, `imports` the
modules to import, `commands` the command lines of `steersman` to run. Prints JSON: what each import failed by
(null: it did not), and each command's exit code and output.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import sys
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

WANTED = json.load(sys.stdin)
ABSENT = frozenset(WANTED["absent"])


class Only(PathFinder):
    """Finds all but what is absent: that is not there for `importlib.util.find_spec` either."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As PathFinder's."""
        if fullname.partition(".")[0] in ABSENT:
            return None
        return super().find_spec(fullname, path, target)


def imported(name: str) -> list[str | None] | None:
    """None, or the error: its type, the module that was not found, and the line for people."""
    from extproc.extras import explained

    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return [type(error).__name__, error.name, explained(error)]
    except Exception as error:  # noqa: BLE001 (whatever it is, the test tells it)
        return [type(error).__name__, None, str(error)]
    return None


def run(arguments: list[str]) -> dict[str, Any]:
    """One command in this process."""
    from extproc.cli import main

    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 (a traceback is what must not be)
            traceback.print_exc(file=said)
            code = -1
    return {"code": code, "said": said.getvalue()}


# Its program lies beside Python's.
find = shutil.which
shutil.which = lambda name, *rest, **more: None if name in ABSENT else find(name, *rest, **more)
for place, finder in enumerate(sys.meta_path):
    if finder is PathFinder:
        sys.meta_path[place] = Only
found = {
    "imports": {name: imported(name) for name in WANTED.get("imports", [])},
    "commands": [run(arguments) for arguments in WANTED.get("commands", [])],
}
print(json.dumps(found))
