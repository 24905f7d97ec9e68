"""LoRA adapters in the file: which models of a pool they are, and whether calls to the engine load them.

Owns both sections. What can be wrong in them only in the light of the pool is adapter_checks.py's.
"""

from __future__ import annotations

from pydantic import Field

from extproc.config.section import Section
from extproc.config.types import ModelName
from extproc.core.adapters import TOGETHER_MAX

#: Where an adapter's name stands in a path.
NAME_PLACE = "{name}"


class AdapterLoading(Section):
    """The gateway tells engines to load and unload adapters (vLLM's /v1/load_lora_adapter and
    /v1/unload_lora_adapter with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, SGLang's without /v1)."""

    path: str = Field(default=NAME_PLACE, min_length=1, max_length=4_096)
    """Where engines find an adapter, as they see it: a folder or a hub's name; `{name}` stands for the
    adapter's name."""
    paths: dict[ModelName, str] = Field(default={}, max_length=10_000)
    """The same by adapter, for those that are elsewhere."""
    timeout_s: float = Field(default=60.0, ge=1.0, le=3_600.0)
    """How long one call may take."""
    together_max: int = Field(default=TOGETHER_MAX, ge=1, le=256)
    """Calls at once in the pool; at one replica there is one at most."""


class AdaptersConfig(Section):
    """LoRA adapters that a pool's replicas serve beside their base model. Requests go where their adapter is
    loaded, and to more replicas as more of them come."""

    names: list[ModelName] = Field(min_length=1, max_length=10_000)
    """Which of the pool's `models` are adapters. TGI's `parameters.adapter_id` names one as well."""
    loaded_max: int = Field(default=1, ge=1, le=10_000)
    """How many a replica has loaded at once (vLLM's --max-loras, SGLang's --max-loras-per-batch)."""
    load_ms: float = Field(default=1_000.0, ge=0.0, le=600_000.0)
    """How long loading one takes: another replica gets a copy when requests would wait longer than this for
    those that have it."""
    load: AdapterLoading | None = None
    """Load and unload them by calls to the engine; without it an engine serves those that it was started
    with."""


def path_of(loading: AdapterLoading, name: str) -> str:
    """What an engine is told as an adapter's path."""
    return loading.paths.get(name) or loading.path.replace(NAME_PLACE, name)
