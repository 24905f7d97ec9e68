"""Reads a fleet of replicas from YAML: every problem at once, each with its path.

    defaults: {hardware: a100-80g/llama-3-8b, time_scale: 10}
    replicas:
      - {name: fast, port: 9001}
      - {name: slow, port: 9002, slowdown: 3.0}
      - {name: pool, port: 9010, count: 4}     # pool-0 … pool-3 on 9010 … 9013

Keys are `ReplicaSpec`'s fields, and `count`. Pure: text in, specs out.
"""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Final

import msgspec
import yaml

from extproc.sim.spec import ReplicaSpec

REPLICAS_MAX: Final = 1000
_KEYS: Final = frozenset(field.name for field in fields(ReplicaSpec))


class FleetFileError(ValueError):
    """A fleet file that cannot be used; `problems` are lines ready to print."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_fleet(text: str) -> list[ReplicaSpec]:
    """The replicas of a fleet file; `FleetFileError` with all that is wrong."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FleetFileError([f"not YAML: {error}"]) from None
    if not isinstance(document, dict):
        raise FleetFileError(["the top level must be a mapping with `replicas`"])
    problems = [
        f"{key}: unknown key; the top level has `defaults` and `replicas`"
        for key in document
        if key not in ("defaults", "replicas")
    ]
    defaults = document.get("defaults") or {}
    entries = document.get("replicas")
    if not isinstance(defaults, dict):
        problems.append("defaults: must be a mapping")
        defaults = {}
    problems += _unknown("defaults", defaults, _KEYS - {"name", "port"})
    if not isinstance(entries, list) or not entries:
        raise FleetFileError([*problems, "replicas: must be a list with at least one replica"])
    specs: list[ReplicaSpec] = []
    for at, entry in enumerate(entries):
        path = f"replicas[{at}]"
        if not isinstance(entry, dict):
            problems.append(f"{path}: must be a mapping")
            continue
        wrong = _unknown(path, entry, _KEYS | {"count"})
        if wrong:
            problems += wrong
            continue
        try:
            specs += _expand({**defaults, **entry})
        except (msgspec.ValidationError, ValueError) as error:
            problems.append(f"{path}: {error}")
    if len(specs) > REPLICAS_MAX:
        problems.append(f"replicas: {len(specs)} are too many; at most {REPLICAS_MAX} run in one process")
    problems += _duplicates(specs)
    if problems:
        raise FleetFileError(problems)
    return specs


def spread(settings: dict[str, Any], *, count: int) -> list[ReplicaSpec]:
    """`count` replicas alike: `name-0` …, and consecutive ports (unless 0)."""
    specs = []
    for at in range(count):
        one = dict(settings)
        if count > 1:
            one["name"] = f"{settings.get('name', 'sim')}-{at}"
            if settings.get("port"):
                one["port"] = settings["port"] + at
        specs.append(msgspec.convert(one, ReplicaSpec))
    return specs


def _expand(entry: dict[str, Any]) -> list[ReplicaSpec]:
    count = entry.pop("count", 1)
    if not isinstance(count, int) or not 1 <= count <= REPLICAS_MAX:
        raise ValueError(f"count must lie in 1..{REPLICAS_MAX}, not {count}")
    if count > 1:  # check types before doing sums with them
        msgspec.convert(entry, ReplicaSpec)
    return spread(entry, count=count)


def _unknown(path: str, mapping: dict[Any, Any], known: frozenset[str]) -> list[str]:
    found = []
    for key in mapping:
        if key in known:
            continue
        near = get_close_matches(str(key), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        found.append(f"{path}.{key}: unknown key{hint}")
    return found


def _duplicates(specs: list[ReplicaSpec]) -> list[str]:
    """Names and addresses must tell replicas apart."""
    problems = []
    names: set[str] = set()
    places: dict[tuple[str, int], str] = {}
    for spec in specs:
        if spec.name in names:
            problems.append(f"replicas: two are named {spec.name!r}; give each its own name")
        names.add(spec.name)
        other = places.setdefault((spec.host, spec.port), spec.name) if spec.port else spec.name
        if other != spec.name:
            problems.append(f"replicas: {other!r} and {spec.name!r} both listen on {spec.host}:{spec.port}")
    return problems
