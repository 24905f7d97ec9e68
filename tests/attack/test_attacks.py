"""The quick part of `make attack`: each attack once, on one gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack import admin_port as _admin_port  # noqa: F401 (they register themselves)
from tests.attack import attacks as _attacks  # noqa: F401
from tests.attack import cached as _cached  # noqa: F401
from tests.attack import forgeries as _forgeries  # noqa: F401
from tests.attack.disk import on_a_full_disk, possible
from tests.attack.report import ATTACKS, Attack, Report, table
from tests.attack.stand import Stand, standing

pytestmark = pytest.mark.envoy


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with standing() as stand:
        yield stand


QUICK = [each for each in ATTACKS if each.quick]


@pytest.mark.parametrize("each", QUICK, ids=[each.name.replace(" ", "-") for each in QUICK])
def test_an_attack(stand: Stand, each: Attack) -> None:
    """Its promise holds."""
    report = each.run(stand, full=False)
    assert report.tried
    assert not report.broken, table([(each.name, report)])


def test_a_full_disk(tmp_path: Path) -> None:
    """Our files hold whole lines alone, whoever could not write says so, and all goes on with room again."""
    if not possible(tmp_path):
        pytest.skip("no file system of our own: unshare is not allowed here")
    found = on_a_full_disk(tmp_path)
    for turn in ("before", "full", "after"):
        assert found[turn]["torn"] == {}, turn
    assert found["before"]["history"] == found["after"]["history"] == "kept"
    assert found["full"]["history"] == "refused"
    assert "refused" in found["full"]["analytics"]
    assert set(found["after"]["analytics"]) == {"kept"}
    assert found["lost"] == 40
    assert found["versions"] == [1, 2]
    assert found["problems"] == []
    assert found["mended"] == "next"


def test_a_broken_promise_shows() -> None:
    """The table says which attack broke what, and the others held."""
    broken, held = Report(), Report()
    broken.answer(200)
    broken.holds(False, "it got in")
    held.answer(401)
    held.served(held.victim)
    text = table([("one", broken), ("two", held)])
    assert "BROKEN: it got in" in text
    heads = [line for line in text.splitlines() if not line.startswith(" ")]
    assert [line.split()[-1] for line in heads] == ["BROKEN", "held"]
