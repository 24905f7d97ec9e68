"""What holds for every test: how many examples, in whose worker, in which order."""

from __future__ import annotations

import gc
from collections.abc import Generator
from typing import Any

import pytest

from tests.stand import examples, parsing
from tests.stand.sharing import Sharing, long_first

parsing.install()
examples.register()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing | None:
    """Ours in place of xdist's own `load`; another one asked for by name is left alone."""
    return Sharing(config, log) if config.getoption("dist") in ("load", "loadfile") else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is imported stays: no collection looks through it, now or beside each test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After pytest-randomly has shuffled them."""
    items[:] = long_first(items)
