"""The engines' own keys, from files or the environment.

Owns the reading alone: by the service at its start and at a reload, not by `steersman check`, which may run
where the keys are not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config

#: One word that fits into a header.
_KEY = re.compile(rb"[!-~]{1,4096}")


def engine_keys(config: Config) -> dict[str, str]:
    """The keys by pool, of those that have one, without blanks around them. Raises ConfigError."""
    keys: dict[str, str] = {}
    for i, pool in enumerate(config.pools):
        if pool.engine_key_file is not None:
            name, where = f"pools[{i}].engine_key_file", pool.engine_key_file
            try:
                key = Path(where).read_bytes().strip()
            except OSError as error:
                raise ConfigError(
                    [Problem(where, None, name, f"cannot be read: {error.strerror}")]
                ) from error
        elif pool.engine_key_env is not None:
            name, where = f"pools[{i}].engine_key_env", f"${pool.engine_key_env}"
            key = os.environ.get(pool.engine_key_env, "").encode().strip()
        else:
            continue
        if _KEY.fullmatch(key) is None:
            message = "is not one word of 1 to 4,096 printable ASCII characters; write the engine's key there"
            raise ConfigError([Problem(where, None, name, message)])
        keys[pool.name] = key.decode()
    return keys
