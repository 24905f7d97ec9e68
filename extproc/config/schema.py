"""The JSON Schema of `steersman.yaml`, made from the models: for editors, and for who writes such files."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from extproc.config.docstrings import described
from extproc.config.model import Config
from extproc.config.reference import sections


def schema() -> dict[str, Any]:
    """Names as the file spells them, each with its text. What one setting means for another is `check`'s."""
    made = Config.model_json_schema(by_alias=True)
    texts = {section.__name__: _texts(section) for section in sections()}
    for name, each in {Config.__name__: made, **made.get("$defs", {})}.items():
        for setting, its in each.get("properties", {}).items():
            if text := texts.get(name, {}).get(setting):
                its["description"] = " ".join(text.split())
    return {"$schema": GenerateJsonSchema.schema_dialect, **made, "title": "steersman.yaml"}


def _texts(section: type[BaseModel]) -> dict[str, str]:
    spelled = {name: field.alias or name for name, field in section.model_fields.items()}
    return {spelled[name]: text for name, text in described(section).items() if name in spelled}
