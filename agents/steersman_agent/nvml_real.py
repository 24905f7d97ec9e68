"""Opens the NVML that agent.yaml asks for: the machine's own, the fake, or none."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from steersman_agent.nvml_fake import FakeNvml


class NoDriverError(Exception):
    """There is no NVIDIA driver here; the message says why."""


def _pynvml() -> Any:
    """The package has no types: by name, so that it is `Any` whatever the type checker is told of it."""
    return importlib.import_module("pynvml")


def open_nvml(choice: str) -> Any:
    """An initialised library for `auto` or `fake:PATH`; `NoDriverError` where there is none."""
    lib: Any = FakeNvml(Path(choice.removeprefix("fake:"))) if choice.startswith("fake:") else _pynvml()
    try:
        lib.nvmlInit()
    except lib.NVMLError as error:
        raise NoDriverError(f"NVML: {error}") from error
    return lib
