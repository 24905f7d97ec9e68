"""What a configuration asks for that this environment lacks. Owns which section needs which extra.

A file may be checked where it does not run, so this is said as a warning there; where it runs, each section
refuses by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from extproc import extras
from extproc.config.model import Config


def lacking(config: Config) -> Iterator[str]:
    """Each as `PATH: it needs the extra …`. Tokenizers are `tokens.check`'s."""
    cache = config.cache
    semantic = [
        tenant.name
        for tenant in config.tenants
        if tenant.cache is not None and tenant.cache.semantic is not None
    ]
    wanted = {
        "sharing": ("redis", config.sharing is not None),
        "otel": ("otel", config.otel is not None),
        "cache.keys": ("encryption", cache is not None and bool(cache.keys_file or cache.keys_env)),
        f"tenants[{min(semantic, default='')}].cache.semantic": ("semantic", bool(semantic)),
    }
    for path, (extra, asked) in wanted.items():
        if asked and extras.missing(extra):
            yield f"{path}: {extras.needed(extra, by='it')}"
