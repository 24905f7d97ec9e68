"""What a checked server answers is read, or says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.doctor.fetch import Fetched


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"data":[]}', {"data": []}),
        (b"<html>", None),
        (b"[" * 100_000, None),
        (b"\xff", None),
        (b"9" * 5_000, None),
    ],
)
def test_whatever_is_answered(body: bytes, found: Any) -> None:
    """No JSON, nested without end, no text, a number of 5,000 digits: none."""
    assert Fetched(200, body, {}).json() == found
