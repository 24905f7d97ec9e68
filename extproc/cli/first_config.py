"""A first `steersman.yaml` from what backends say of themselves: pools by model, one tenant, and words.

Pure: values in, text out. Owns how replicas become pools and what the comments say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from extproc.addresses import port_of
from extproc.doctor.evidence import Backend
from extproc.engines import traits_of
from extproc.history.surgery import written

#: The gateway's own when a replica does not say (config/model.py).
PERMITS_DEFAULT = 128
PREFILL_DEFAULT = 4096


class GroupingError(ValueError):
    """The backends cannot be made pools of; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBackend:
    """A backend, and where its address came from."""

    seen: Backend
    #: The host name that it was given by; "" for an address.
    host: str = ""
    #: The pool's `upstream`; empty for the clear.
    upstream: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class FirstPool:
    """Replicas of one model on one engine."""

    name: str
    engine: str
    models: tuple[str, ...]
    replicas: list[FoundBackend] = field(default_factory=list)
    #: Host name → port, for names that stay names.
    dns: dict[str, int] = field(default_factory=dict)
    upstream: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things listen."""

    listen: str
    envoy_admin: str
    service: str


def grouped(replicas: Sequence[FoundBackend], *, keep_names: bool = False) -> list[FirstPool]:
    """A pool for each model, in the order given. Raises GroupingError."""
    pools: dict[tuple[str, tuple[str, ...], str], FirstPool] = {}
    owner: dict[str, FirstPool] = {}
    for each in replicas:
        seen = each.seen
        assert seen.engine is not None, "asked for before"
        assert seen.models, "asked for before"
        key = (seen.engine, seen.models, str(each.upstream))
        if key not in pools:
            for model in seen.models:
                if model in owner:
                    other = owner[model]
                    raise GroupingError(
                        f"{model} is served by {other.engine} at {other.replicas[0].seen.address} and, "
                        "otherwise, by "
                        f"{seen.engine} at {seen.address}; a pool's replicas are alike: run init for one "
                        "kind, and "
                        "add the other by hand under another model name"
                    )
            name = _name(seen.models[0], {pool.name for pool in pools.values()})
            pools[key] = FirstPool(name=name, engine=seen.engine, models=seen.models, upstream=each.upstream)
            owner.update(dict.fromkeys(seen.models, pools[key]))
        pool = pools[key]
        if keep_names and each.host:
            pool.dns[each.host] = port_of(seen.address)
        pool.replicas.append(each)
    return list(pools.values())


def _name(model: str, taken: set[str]) -> str:
    """A pool's name from a model's: its last part, in small letters."""
    last = model.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    base = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:56].strip("._-") or "pool"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    return name


def text(
    pools: Sequence[FirstPool], *, places: Places, tenant: str, key_sha256: str, schema: str = ""
) -> str:
    """The file; `schema` is the JSON Schema's, from which editors complete, where one lies beside it."""
    lines = [
        *([f"# yaml-language-server: $schema={schema}"] if schema else []),
        "# Written by `steersman init`, which asked the backends what they are. Yours to edit: every",
        "# setting and its default is in docs/configuration.md; `steersman check` names every mistake.",
        "#",
        "#   steersman check                 is it good?",
        "#   steersman up                    start Envoy and the service for it",
        "#   steersman doctor                does the running whole work?",
        "",
        "gateway:",
        f"  listen: {written(places.listen)}    # where clients connect: http://{places.listen}/v1/chat/completions",
        f"  envoy_admin: {written(places.envoy_admin)}    # Envoy's own port; keep it on loopback",
        "  # debug_headers: true    # tells clients which replica served them, and why",
        "",
        "service:",
        f"  listen: [{written(places.service)}]    # where Envoy asks for decisions",
        "",
        "# Each pool is a model and the replicas that serve it.",
        "pools:",
    ]
    for pool in pools:
        lines += _pool(pool)
    lines += [
        "",
        "# Replicas of this machine can be started and stopped by need instead of being listed: in a pool,",
        '#   scaling: {max_replicas: 2, launcher: {command: [vllm, serve, MODEL, --port, "{port}"]}}',
        "# in place of endpoints; with min_replicas: 0 none runs while nobody asks (docs/scaling.md).",
        "",
        "# Tenants are who may ask, each with keys of its own. The file has a key's hash alone.",
        '# Another one: steersman tenant key new TENANT --why "…"',
        "tenants:",
        f"  - name: {written(tenant)}",
        "    keys:",
        f"      - sha256: {written(key_sha256)}",
        "        name: first",
        "    # quota: {requests_per_minute: 600, output_tokens_per_minute: 100000, concurrent_requests: 64}",
        "    # class: standard    # service classes say how long a request may wait: docs/configuration.md",
        "",
        "# GPU health, engine queues and KV use come from a small agent on each node (steersman agent):",
        "# telemetry:",
        "#   listen: [0.0.0.0:50052]",
        "#   nodes: [{name: gpu-node-1, token_sha256: …}]    # steersman tenant key new",
    ]
    return "\n".join(lines) + "\n"


def _pool(pool: FirstPool) -> list[str]:
    lines = [f"  - name: {written(pool.name)}"]
    if len(pool.models) == 1:
        lines.append(f"    models: [{written(pool.models[0])}]    # the names that clients ask for")
    else:
        lines.append("    models:    # the names that clients ask for; the first is the usual one")
        lines += [f"      - {written(model)}" for model in pool.models]
    lines.append(f"    engine: {pool.engine}")
    if pool.upstream:
        about = "how its replicas are reached: docs/pools.md"
        lines.append(f"    upstream: {json.dumps(pool.upstream)}    # {about}")
    lines.append("    strategy: steer    # how a replica is chosen: docs/strategies.md")
    budgets = {each.seen.prefill_budget_tokens for each in pool.replicas} - {None, PREFILL_DEFAULT}
    if len(budgets) == 1:
        lines.append(f"    prefill_budget_tokens: {budgets.pop()}    # the engine's max_batch_prefill_tokens")
    listed = [each for each in pool.replicas if each.host not in pool.dns]
    if listed:
        lines.append("    endpoints:")
        for each in listed:
            lines += _endpoint(each, pool)
    if pool.dns:
        lines.append("    discovery:    # resolved again every 5 s; replicas come and go with the name")
        lines.append("      dns:")
        lines += [f"        - {{name: {written(name)}, port: {port}}}" for name, port in pool.dns.items()]
    return lines


def _endpoint(replica: FoundBackend, pool: FirstPool) -> list[str]:
    seen = replica.seen
    facts = [f"{pool.engine} {seen.version}".strip(), *([replica.host] if replica.host else [])]
    lines = [f"      - address: {written(seen.address)}    # {', '.join(facts)}"]
    if seen.max_concurrent:
        lines.append(
            f"        max_concurrent: {seen.max_concurrent}    # what the engine takes at once, by its own "
            "word"
        )
    elif (engine := traits_of(pool.engine)).limit_flag:
        about = f"{engine.title or engine.name} does not tell; make it its {engine.limit_flag}"
        lines.append(f"        max_concurrent: {PERMITS_DEFAULT}    # {about}")
    if seen.kv_capacity_tokens:
        lines.append(f"        kv_capacity_tokens: {seen.kv_capacity_tokens}")
    return lines


def plain(pools: Sequence[FirstPool]) -> list[Mapping[str, object]]:
    """The pools as plain values."""
    return [
        {
            "name": pool.name,
            "engine": pool.engine,
            "models": list(pool.models),
            "endpoints": [
                {
                    "address": each.seen.address,
                    "max_concurrent": each.seen.max_concurrent,
                    "kv_capacity_tokens": each.seen.kv_capacity_tokens,
                    "version": each.seen.version,
                }
                for each in pool.replicas
                if each.host not in pool.dns
            ],
            "dns": [{"name": name, "port": port} for name, port in pool.dns.items()],
        }
        for pool in pools
    ]
