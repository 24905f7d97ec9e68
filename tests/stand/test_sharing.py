"""sharing.py: the long files come first, and every file that it names is there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.stand.sharing import LONG, TOGETHER, WAITING, long_first, waits

ROOT = Path(__file__).resolve().parents[2]


def item(nodeid: str, *, slow: bool = False) -> Any:
    return SimpleNamespace(
        nodeid=nodeid,
        path=Path(nodeid.partition("::")[0]),
        get_closest_marker=lambda name: (slow and name == "slow") or None,
    )


def test_what_is_named_is_there() -> None:
    """A file that was renamed or split does not fall out of the order unseen."""
    assert [each for each in (*LONG, *WAITING, TOGETHER) if not (ROOT / each).exists()] == []
    assert len(set(LONG)) == len(LONG)


def test_long_files_come_first_and_others_keep_their_order() -> None:
    """The listed ones by their place, then what is marked slow, then the rest as pytest-randomly has it."""
    rest = [item("tests/core/test_b.py::test_x"), item("tests/core/test_a.py::test_y")]
    marked = [item("tests/core/test_c.py::test_p"), item("tests/core/test_c.py::test_q", slow=True)]
    listed = [item(f"{LONG[2]}::test_z"), item(f"{LONG[0]}test_page.py::test_w")]
    found = long_first([*rest, *marked, *listed])
    assert found == [*reversed(listed), *marked, *rest]


def test_kinds_are_told_by_the_folder() -> None:
    """What starts processes waits; the core computes."""
    assert waits("tests/e2e/test_up.py")
    assert waits(TOGETHER)
    assert not waits("tests/core/test_load.py")
