"""Engine adapters: what each engine's pages mean, in the normal form. One small file an engine.

An adapter is pure: bytes in, figures out. It knows which pages to ask for, not how to fetch them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from steersman_agent.engines.base import EngineAdapter
from steersman_agent.engines.llamacpp import LlamaCpp
from steersman_agent.engines.sglang import SGLang
from steersman_agent.engines.tgi import Tgi
from steersman_agent.engines.vllm import Vllm

__all__ = ["ENGINES", "EngineAdapter"]

#: Engine name in agent.yaml → adapter.
ENGINES: Final[Mapping[str, EngineAdapter]] = {
    engine.name: engine for engine in (Tgi(), Vllm(), SGLang(), LlamaCpp())
}
