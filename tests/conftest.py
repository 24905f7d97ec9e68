"""What holds for every test: how many examples, in whose worker, in which order."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from processes import logs_of_running

from extproc.control import light
from tests.stand import examples, parsing
from tests.stand.sharing import Sharing, long_first, waits
from tests.stand.wanting import missed

if "STEERSMAN_TEST_RUN" not in os.environ:
    # Services' sockets and keys: in no folder of this user's, gone afterwards. Workers have their parent's.
    _folder = tempfile.mkdtemp(prefix="steersman-run-")
    os.environ["STEERSMAN_TEST_RUN"] = os.environ["XDG_RUNTIME_DIR"] = _folder
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)
parsing.install()
# Envoy's messages as the product has them: with validators each worker pays 1.2 s to import them, and 1.5 s
# for what it renders first. tests/control/test_golden.py renders with validators, in a process of its own.
light.install()
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
        # With the garbage that imports have left: to look for it takes each worker a second.
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After pytest-randomly has shuffled them."""
    items[:] = long_first(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI what is skipped for want of a part has failed. What failed has the logs of what still runs beside
    it: a gateway that many tests share; one of its own has printed them at its end."""
    report = yield
    if why := missed(report):
        report.outcome, report.longrepr = "failed", why
    elif report.failed:
        report.sections.extend(logs_of_running())
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same of whole files."""
    report = yield
    if why := missed(report):
        report.outcome, report.longrepr = "failed", why
    return report


@pytest.fixture(scope="module", autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a file left open is told in that file, and not where it happens to be collected."""
    yield
    if waits(request.node.nodeid):
        gc.collect()
