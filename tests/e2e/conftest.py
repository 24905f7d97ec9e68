"""Fixtures of the end-to-end tests: one gateway per module, of four replicas in two pools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway import Gateway
from replicas import Replicas, specs


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A module with IN_ORDER keeps its file's order when others are shuffled: one demo, broken bit by bit."""
    places: dict[object, list[int]] = {}
    for place, item in enumerate(items):
        if getattr(getattr(item, "module", None), "IN_ORDER", False):
            places.setdefault(item.module, []).append(place)  # type: ignore[attr-defined]
    for each in places.values():
        found = sorted((items[place] for place in each), key=lambda item: item.reportinfo()[1] or 0)
        for place, item in zip(each, found, strict=True):
            items[place] = item


@pytest.fixture(scope="module")
def fleet() -> Iterator[tuple[Gateway, Replicas]]:
    """A gateway over two pools (tiny-chat, tiny-code) of two simulated replicas each."""
    with (
        Replicas(specs(2) + specs(2, model_id="tiny-code")) as replicas,
        Gateway(
            {
                "chat": {"models": ["tiny-chat"], "addresses": replicas.addresses[:2]},
                "code": {"models": ["tiny-code"], "addresses": replicas.addresses[2:]},
            },
        ) as gateway,
    ):
        yield gateway, replicas
