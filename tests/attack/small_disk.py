"""Run on a small file system of its own: what each of our files is after it was full, and after that.

python -m tests.attack.small_disk FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from extproc.config.model import Audit
from extproc.history.versions import ConfigHistory, HistoryError
from extproc.observe.analytics.spans import Retention
from extproc.observe.analytics.sqlite_store import SqliteStore
from extproc.observe.analytics.store import StoredRow, StoreError
from extproc.observe.audit import AuditLog

KEPT = Retention(minutes_s=10**6, hours_s=10**7, days_s=10**8)


def fill(folder: Path) -> None:
    """Take what room is left."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1_000)


def broken_lines(folder: Path) -> dict[str, int]:
    """Lines that are no JSON, by file."""
    bad: Counter[str] = Counter()
    for path in sorted(folder.glob("*.jsonl*")):
        for line in path.read_bytes().splitlines():
            try:
                json.loads(line or b"0")
            except ValueError:
                bad[path.name] += 1
    return dict(bad)


def entries(span: int) -> list[StoredRow]:
    return [StoredRow(60, span * 60, "w", os.urandom(16), os.urandom(400)) for _ in range(40)]


def stored(store: SqliteStore, span: int) -> str:
    try:
        store.write(entries(span), KEPT)
    except StoreError:
        return "refused"
    return "kept"


def changed(history: ConfigHistory, text: str) -> str:
    try:
        history.append(text, who="w", why="", command="test")
    except HistoryError:
        return "refused"
    return "kept"


def main(folder: Path) -> dict[str, Any]:
    """Everything is written to, with room, without, and with room again."""
    audit = AuditLog(Audit(file=str(folder / "audit.jsonl")))
    history = ConfigHistory(folder / "steersman.yaml")
    store = SqliteStore(folder, bytes_max=10**8)
    found: dict[str, Any] = {}
    for turn in ("before", "full", "after"):
        if turn == "full":
            fill(folder)
        if turn == "after":
            (folder / "filler").unlink()
        for number in range(40):
            audit.event("something", number=number, said="x" * 100)
        audit.flush(last=True)
        found[turn] = {
            "analytics": [stored(store, 1), stored(store, 2), stored(store, 3)],
            "history": changed(history, f"# {turn}\n" * 800),
            "torn": broken_lines(folder),
        }
    found["lost"] = audit.counts["audit.lost"]
    found["versions"] = [entry.version for entry in history.read().entries]
    found["problems"] = history.read().problems
    # A process that was killed within a line, or another's file: the next one mends it.
    with (folder / "audit.jsonl").open("ab") as file:
        file.write(b'{"half":')
    other = AuditLog(Audit(file=str(folder / "audit.jsonl")))
    other.event("next")
    other.flush(last=True)
    found["mended"] = json.loads((folder / "audit.jsonl").read_bytes().splitlines()[-1])["event"]
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
