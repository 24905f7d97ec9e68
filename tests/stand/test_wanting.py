"""wanting.py: a skip is a failure in CI, but for what cannot be had there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.stand.wanting import missed

OPENSSL = "makes certificates with openssl, which is not here"


def skipped(reason: str, **more: Any) -> Any:
    return SimpleNamespace(skipped=True, longrepr=("tests/a.py", 1, f"Skipped: {reason}"), **more)


@pytest.mark.parametrize(
    ("reason", "excused"),
    [
        (OPENSSL, False),
        ("no file system of our own: unshare is not allowed here", True),
        ("could not import 'openai': No module named 'openai'", False),
        ("no GPU here: NVML: NVML Shared Library Not Found", True),
        ("no helm: give its path in HELM", True),
    ],
)
def test_what_is_not_excused_fails_in_ci(reason: str, excused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is missing in the message; a card and helm may be missing."""
    monkeypatch.setenv("CI", "true")
    assert missed(skipped(reason)) == (None if excused else f"CI has to have it: {reason}")


def test_elsewhere_a_skip_is_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in CI too, what is expected to fail may, and what passes passes."""
    monkeypatch.delenv("CI", raising=False)
    assert missed(skipped(OPENSSL)) is None
    monkeypatch.setenv("CI", "true")
    assert missed(skipped("expected", wasxfail="a known fault")) is None
    assert missed(SimpleNamespace(skipped=False, longrepr=None)) is None
