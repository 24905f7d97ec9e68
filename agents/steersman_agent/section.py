"""What every section of agent.yaml is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class AgentSection(BaseModel):
    """A section of the file: unknown keys are mistakes, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
