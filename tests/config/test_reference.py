"""The configuration's reference is the models' own word; with STEERSMAN_UPDATE_DOCS=1 this writes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from documents import with_contents

from extproc.config.load import loads
from extproc.config.reference import page, settings

DOC = Path(__file__).parents[2] / "docs" / "configuration.md"
SETTINGS = dict(settings())


def test_the_reference_is_what_the_models_say() -> None:
    """A setting that is added, changed or removed makes the page stale."""
    made = with_contents(page())
    if os.environ.get("STEERSMAN_UPDATE_DOCS"):
        DOC.write_text(made, encoding="utf-8")
    assert DOC.read_text(encoding="utf-8") == made, "write it anew: STEERSMAN_UPDATE_DOCS=1"


@pytest.mark.parametrize("path", sorted(SETTINGS))
def test_every_setting_says_what_it_is(path: str) -> None:
    """In a sentence, not in a word."""
    about = SETTINGS[path]
    assert len(about.split()) >= 2, path
    assert about.rstrip().endswith((".", ":")), about


def test_sections_within_lists_and_names_are_in_it() -> None:
    """Not the top alone: what lists, mappings and optional sections hold as well."""
    assert {
        "pools[].endpoints[].address",
        "gateway.tls.certificate",
        "experiments.NAME.arms.NAME.strategy",
        "tenants[].quota.burst",
    } <= SETTINGS.keys()


def test_the_page_names_the_defaults_that_hold() -> None:
    """What it says of a default is what a file without the setting gets."""
    config = loads(
        yaml.safe_dump(
            {
                "gateway": {"auth": "none"},
                "pools": [{"name": "p", "models": ["m"], "endpoints": [{"address": "127.0.0.1:1"}]}],
            }
        ),
        name="steersman.yaml",
    )
    row = next(line for line in page().splitlines() if line.startswith("| `body_bytes_max`"))
    assert f"`{config.gateway.body_bytes_max}`" in row
