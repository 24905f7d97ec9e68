"""`steersman agent`: the node agent. Owns nothing but the way in; everything is `agents`'."""

from __future__ import annotations

from steersman_agent.command import command

__all__ = ["command"]
