"""What `steersman check --schema` says of a configuration, as an editor would ask it."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from extproc.config.schema import schema


@cache
def validator() -> Draft202012Validator:
    """Made once: making the schema takes longer than looking through a file."""
    return Draft202012Validator(schema())


def mistakes(data: Any) -> list[Any]:
    """Of a file's parsed text; none where it is good."""
    # Times are text to JSON, and to editors.
    return list(validator().iter_errors(json.loads(json.dumps(data, default=datetime.isoformat))))
