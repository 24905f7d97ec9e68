"""Engine adapters: what each engine's pages mean, in the normal form. One small file an engine.

An adapter is pure: bytes in, figures out. It knows which pages to ask for, not how to fetch them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from extproc import plugins
from steersman_agent.engines.base import EngineAdapter
from steersman_agent.engines.llamacpp import LlamaCpp
from steersman_agent.engines.sglang import SGLang
from steersman_agent.engines.tgi import Tgi
from steersman_agent.engines.vllm import Vllm

__all__ = ["ENGINES", "EngineAdapter", "adapter", "adapters", "names"]

#: Engine name in agent.yaml → adapter, of those that come along.
ENGINES: Final[Mapping[str, EngineAdapter]] = {
    engine.name: engine for engine in (Tgi(), Vllm(), SGLang(), LlamaCpp())
}

_added: dict[str, EngineAdapter] = {}


def names() -> tuple[str, ...]:
    """Every engine that agent.yaml may name: those here, then what packages add."""
    return (*ENGINES, *(name for name in plugins.names("engine") if name not in ENGINES))


def adapter(name: str) -> EngineAdapter:
    """An engine's adapter. Raises KeyError for a name that nobody has, PluginError for a package's fault."""
    found = ENGINES.get(name) or _added.get(name)
    if found is None:
        made = plugins.load("engine", name)
        if not (isinstance(made, type) and issubclass(made, EngineAdapter) and made.name == name):
            raise plugins.unfit("engine", name, f"it is no EngineAdapter named {name!r}")
        found = _added[name] = made()
    return found


def adapters() -> Iterator[EngineAdapter]:
    """All that can be used, in the order in which a server that nobody has named is asked what it is."""
    found = []
    for name in names():
        with suppress(plugins.PluginError):  # said where a file names it
            found.append(adapter(name))
    return iter(sorted(found, key=lambda each: each.told_weakly))
