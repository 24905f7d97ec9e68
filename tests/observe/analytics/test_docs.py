"""docs/analytics.md tells of everything that can be asked, answered and set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from extproc.config.analytics import Analytics
from extproc.observe.analytics import Query, QueryLine
from extproc.observe.analytics.query import Charge, Quantiles

PAGE = (Path(__file__).parents[3] / "docs" / "analytics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    sorted({name for each in (Query, QueryLine, Charge, Quantiles) for name in each.__struct_fields__}),
)
def test_every_key_is_told_of(name: str) -> None:
    """As code."""
    assert re.search(rf"`{name}`", PAGE)


@pytest.mark.parametrize("name", sorted(Analytics.model_fields))
def test_every_setting_is_told_of(name: str) -> None:
    """With its default, where it has one."""
    found = re.search(rf"^  {name}: (\S+)", PAGE, re.MULTILINE)
    assert found
    default = Analytics.model_fields[name].default
    if default is not None:
        assert found[1] == str(default).lower().removesuffix(".0")
