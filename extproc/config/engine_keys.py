"""The engines' own keys, from files or the environment.

Owns the reading alone: by the service at its start and at a reload, not by `steersman check`, which may run
where the keys are not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config, PoolConfig

#: One word that fits into a header.
_KEY = re.compile(rb"[!-~]{1,4096}")
#: What is read of a file; more is no key.
_KEY_FILE_BYTES_MAX = 8192


def engine_keys(config: Config) -> dict[str, str]:
    """The keys by pool, of those that have one, without blanks around them. Raises ConfigError."""
    return {
        pool.name: engine_key(pool, where=f"pools[{i}].upstream.key")
        for i, pool in enumerate(config.pools)
        if pool.upstream.key is not None
    }


def engine_key(pool: PoolConfig, *, where: str = "upstream.key") -> str:
    """One pool's; empty where it has none. Raises ConfigError."""
    own = pool.upstream.key
    if own is None:
        return ""
    if own.file is not None:
        name, place = f"{where}.file", own.file
        try:
            with Path(own.file).open("rb") as file:
                key = file.read(_KEY_FILE_BYTES_MAX).strip()
        except OSError as error:
            message = f"cannot be read: {error.strerror}; write the engine's key there"
            raise ConfigError([Problem(place, None, name, message)]) from error
    else:
        name, place = f"{where}.env", f"${own.env}"
        key = os.environ.get(own.env or "", "").encode().strip()
    if _KEY.fullmatch(key) is None:
        message = "is not one word of 1 to 4,096 printable ASCII characters; write the engine's key there"
        raise ConfigError([Problem(place, None, name, message)])
    return key.decode()


def key_headers(config: Config, keys: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The keys by pool, as header and value."""
    return {
        pool.name: (pool.upstream.key.header, pool.upstream.key.before + keys[pool.name])
        for pool in config.pools
        if pool.upstream.key is not None and pool.name in keys
    }
