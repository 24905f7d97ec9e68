"""The response cache at an edge: a centre's answers are kept; what another model gave in its place is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cache_gateway import figures
from gateway import tenants, wait_for
from two_sites import BIG, COMPLEX, SMALL, TwoSites, two_sites

pytestmark = pytest.mark.envoy


@pytest.fixture(scope="module")
def sites() -> Iterator[TwoSites]:
    own = {"away_model": SMALL, "cache": {"mode": "on"}}
    with two_sites(tenants=tenants(acme=own), cache={}) as made:
        yield made


@pytest.fixture(autouse=True)
def _connected(sites: TwoSites) -> None:
    sites.connected()


def ask(sites: TwoSites, model: str, text: str) -> tuple[str, str]:
    """Whose engine answered a deterministic chat, and what the gateway says of its cache."""
    status, told, body = sites.ask(model, text, temperature=0)
    assert status == 200, body
    said: str = body["choices"][0]["message"]["content"]
    return said, told.get("x-steersman-cache", "").partition(";")[0]


def answers(sites: TwoSites) -> int:
    count: int = figures(sites.edge)["answers"]
    return count


def test_what_is_only_there_is_kept_here(sites: TwoSites) -> None:
    """The second time neither the way nor the centre is asked: not even while the way is cut."""
    before = answers(sites)
    assert ask(sites, BIG, "kept here?") == ("in the centre", "")
    wait_for("its answer", lambda: answers(sites) == before + 1)
    seen = len(sites.far.seen)
    assert ask(sites, BIG, "kept here?") == ("in the centre", "hit")
    sites.way.cut()
    try:
        assert ask(sites, BIG, "kept here?") == ("in the centre", "hit")
    finally:
        sites.way.mend()
    sites.connected()
    assert len(sites.far.seen) == seen


def test_what_a_smaller_model_said_meanwhile_is_not_kept(sites: TwoSites) -> None:
    """While the centre is away; when it is back it answers itself."""
    before = answers(sites)
    sites.way.cut()
    try:
        wait_for("that it is away", lambda: sites.link["away"])
        for _ in range(2):
            assert ask(sites, BIG, "by whom?") == ("at the edge", "")
    finally:
        sites.way.mend()
    sites.connected()
    wait_for("quiet", sites.edge.quiet)
    assert answers(sites) == before
    assert ask(sites, BIG, "by whom?") == ("in the centre", "")


def test_what_went_there_for_its_work_is_not_kept_here(sites: TwoSites) -> None:
    """The same model at both sites may be of other weights there: each answer is asked for."""
    before = answers(sites)
    for _ in range(2):
        assert ask(sites, SMALL, COMPLEX) == ("in the centre", "")
    wait_for("quiet", sites.edge.quiet)
    assert answers(sites) == before
    simple: Any = ask(sites, SMALL, "simple")
    assert simple == ("at the edge", "")
    wait_for("its answer", lambda: answers(sites) == before + 1)
    assert ask(sites, SMALL, "simple") == ("at the edge", "hit")


def test_what_a_client_says_of_caches_holds_at_both() -> None:
    """`off` and `refresh` go along to a centre that keeps answers too; a hit there is an answer as any."""
    own = {"cache": {"mode": "on"}}
    both = {"tenants": tenants(acme=own), "cache": {}}
    with two_sites(centre=both) as made:

        def asked(how: str) -> str:
            told = made.ask(BIG, "of both", temperature=0, headers={"x-steersman-cache": how} if how else {})[
                1
            ]
            return told.get("x-steersman-cache", "").partition(";")[0]

        def there() -> int:
            count: int = figures(made.centre)["answers"]
            return count

        assert asked("") == ""
        wait_for("its answer in the centre", lambda: there() == 1)
        seen = len(made.far.seen)
        assert asked("") == ""
        assert len(made.far.seen) == seen
        for how in ("off", "refresh"):
            assert asked(how) == ""
        assert len(made.far.seen) == seen + 2
