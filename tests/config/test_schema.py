"""The JSON Schema says of a file's structure what the models say."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from extproc.config.schema import schema

ROOT = Path(__file__).parents[2]
GOOD = [*sorted((ROOT / "envoy" / "examples").glob("*.yaml")), ROOT / "deploy" / "compose" / "steersman.yaml"]
BAD = Path(__file__).parent / "bad"
#: Files whose mistakes are of structure: names, types, ranges, words of a list.
STRUCTURAL = (
    "pool_unknown_key",
    "pool_engine",
    "gateway_auth",
    "gateway_no_section",
    "limits_unknown",
    "meant_keys",
    "no_pools",
    "pools_no_list",
    "version",
    "empty_pools",
)


def mistakes(path: Path) -> list[Any]:
    validator = Draft202012Validator(schema())
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    # Times are text to JSON, and to editors.
    return list(validator.iter_errors(json.loads(json.dumps(data, default=datetime.isoformat))))


def test_it_is_a_schema() -> None:
    """Of the dialect that it names."""
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", GOOD, ids=[path.stem for path in GOOD])
def test_good_files_validate(path: Path) -> None:
    """Every example is good by the schema too."""
    assert mistakes(path) == []


@pytest.mark.parametrize("name", STRUCTURAL)
def test_mistakes_of_structure_are_refused(name: str) -> None:
    """Where JSON Schema can say it."""
    assert mistakes(BAD / f"{name}.yaml")


def test_names_are_the_files_own_and_have_their_text() -> None:
    """`class`, with what it is."""
    tenant = schema()["$defs"]["Tenant"]["properties"]
    assert tenant["class"]["description"] == "Its service class."
    assert "service_class" not in tenant
