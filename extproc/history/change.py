"""A change of the configuration by a command: checked, recorded, then written; or nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from extproc.config.load import ConfigError, load, loads
from extproc.config.model import Config
from extproc.history.versions import (
    ConfigHistory,
    HistoryError,
    Version,
    locked,
    read_text,
    user,
    written_aside,
)

#: What takes a text and the configuration that it reads as, and gives the new text.
Rewrite = Callable[[str, Config], str]


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed: before (None where the text could not be used), after, and the version it became."""

    before: Config | None
    after: Config
    entry: Version


def change(file: Path, rewrite: Rewrite, *, why: str, command: str, who: str = "") -> Change | None:
    """Rewrite a configuration; None when that changes nothing.

    Raises ConfigError (every mistake of the new text; the file is as it was), HistoryError, and what
    `rewrite` raises. The new text lies on the disk beside the file before the version is recorded, so that
    a folder or a disk that takes none leaves no version behind. The file changes after that: should even
    the renaming fail, the next command finds the old text and records it as changed outside.
    """
    load(file)  # for its wording of what cannot be read
    with locked(file):
        text = read_text(file)
        before = loads(text, name=str(file))
        new = rewrite(text, before)
        if new == text:
            return None
        return _write(file, text, new, before=before, why=why, command=command, who=who)


def rollback(file: Path, version: int, *, why: str, who: str = "") -> Change | None:
    """Write a version's text again, as a new version; None when it is what stands there.

    A text that cannot be used now does not stop it; it is not recorded either (in it may stand a key
    in place of a hash), but kept beside the file as FILE.refused.
    """
    with locked(file):
        history = ConfigHistory(file)
        old = history.read().version(version)
        text = read_text(file)
        if text == old.text:
            return None
        before: Config | None
        try:
            before = loads(text, name=str(file))
        except ConfigError:
            before = None
            _keep(file.with_name(f"{file.name}.refused"), text)
        return _write(
            file, text, old.text, before=before, why=why, command=f"config rollback {version}", who=who
        )


def _write(
    file: Path, text: str, new: str, *, before: Config | None, why: str, command: str, who: str
) -> Change:
    after = loads(new, name=str(file))
    history = ConfigHistory(file)
    if before is not None:
        history.note(text)
    try:
        with written_aside(file, new) as put:
            entry = history.append(new, who=who or user(), why=why, command=command)
            put()
    except OSError as error:
        raise HistoryError(f"{file}: cannot be written: {error.strerror}") from error
    return Change(before, after, entry)


def _keep(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(text.encode())
