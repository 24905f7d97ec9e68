"""LoRA adapters of one simulated replica by calls, in vLLM's shapes: load, unload, the list of models.

Owns the adapters that it answers for. Stricter than vLLM: it takes no more than it has places for, as SGLang
does, and counts unloads of adapters with requests under way, which a gateway must never send.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from aiohttp import web

from extproc.sim.spec import ReplicaSpec

#: A path that begins so is not there, for tests of what a wrong one leads to.
MISSING: Final = "/missing/"


class LoadAdapterRequest(msgspec.Struct):
    """`/v1/load_lora_adapter`."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False


class UnloadAdapterRequest(msgspec.Struct):
    """`/v1/unload_lora_adapter`."""

    lora_name: str = ""


class LoraRoutes:
    """The two calls, and who may be asked for."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        #: Name to path.
        self.loaded: dict[str, str] = dict.fromkeys(spec.adapters, "")
        self._running: Counter[str] = Counter()
        self._lock = asyncio.Lock()
        self.loads = self.unloads = self.unloaded_in_use = 0

    @property
    def on(self) -> bool:
        """Whether it serves adapters at all; without them any name of a model is answered, as by TGI."""
        return self._spec.adapters_max > 0

    def unknown(self, model: str | None) -> web.Response | None:
        """vLLM's answer for a model that it does not serve."""
        if not self.on or model is None or model == self._spec.model_id or model in self.loaded:
            return None
        return _error(404, "NotFoundError", f"The model `{model}` does not exist.")

    @contextmanager
    def serving(self, model: str | None) -> Iterator[None]:
        """A request for a model is under way."""
        name = model or ""
        self._running[name] += 1
        try:
            yield
        finally:
            self._running[name] -= 1

    def models(self) -> list[dict[str, Any]]:
        """Its entries in the list of models."""
        base = self._spec.model_id
        entry = {"object": "model", "created": 0, "owned_by": "vllm"}
        return [{"id": name, **entry, "root": path, "parent": base} for name, path in self.loaded.items()]

    async def load(self, order: LoadAdapterRequest) -> web.Response:
        """One load at a time; it takes what the replica's hardware takes."""
        name, path = order.lora_name, order.lora_path
        async with self._lock:
            if not name or not path:
                return _error(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
            if name in self.loaded and not order.load_inplace:
                text = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter "
                return _error(400, "InvalidUserInput", text + "in place, set 'load_inplace' to True.")
            if path.startswith(MISSING):
                return _error(
                    404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}"
                )
            if len(self.loaded) >= self._spec.adapters_max:
                return _error(400, "BadRequestError", "there are as many adapters as it may have")
            await asyncio.sleep(self._spec.adapter_load_s / self._spec.time_scale)
            self.loaded[name] = path
            self.loads += 1
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, order: UnloadAdapterRequest) -> web.Response:
        """At once."""
        name = order.lora_name
        if name not in self.loaded:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        self.unloaded_in_use += self._running[name] > 0
        self.unloads += 1
        del self.loaded[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def _error(status: int, kind: str, message: str) -> web.Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
