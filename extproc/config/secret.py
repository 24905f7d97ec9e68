"""Secrets, from a file or the environment: that of the keys' hashes, and the engines' own keys.

Owns the reading alone. They are read by the service at its start and at a reload, not by `steersman check`,
which may run where the secrets are not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config, IdentitySection

SECRET_BYTES_MIN = 16
#: What an engine's key may be: one word that fits into a header.
_ENGINE_KEY = re.compile(rb"[!-~]{1,4096}")


def key_secret(identity: IdentitySection) -> bytes | None:
    """The secret, without blanks around it; None where none is named. Raises ConfigError."""
    where, secret = _read(identity.key_secret_file, identity.key_secret_env, "identity.key_secret_file")
    if secret is None:
        return None
    name = "identity.key_secret_file" if identity.key_secret_file else "identity.key_secret_env"
    if len(secret) < SECRET_BYTES_MIN:
        message = f"has {len(secret)} bytes; write {SECRET_BYTES_MIN} or more, from 'openssl rand -hex 32'"
        raise ConfigError([Problem(where, None, name, message)])
    return secret


def engine_keys(config: Config) -> dict[str, str]:
    """The engines' own keys by pool, of those that have one. Raises ConfigError."""
    keys: dict[str, str] = {}
    for i, pool in enumerate(config.pools):
        names = (f"pools[{i}].engine_key_file", f"pools[{i}].engine_key_env")
        where, key = _read(pool.engine_key_file, pool.engine_key_env, names[0])
        if key is None:
            continue
        if _ENGINE_KEY.fullmatch(key) is None:
            name = names[0] if pool.engine_key_file else names[1]
            message = "is not one word of 1 to 4,096 printable ASCII characters; write the engine's key there"
            raise ConfigError([Problem(where, None, name, message)])
        keys[pool.name] = key.decode()
    return keys


def _read(file: str | None, variable: str | None, file_name: str) -> tuple[str, bytes | None]:
    """Where a secret stands and what it is, without blanks around it; None where none is named."""
    if file is not None:
        try:
            return file, Path(file).read_bytes().strip()
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            raise ConfigError([Problem(file, None, file_name, message)]) from error
    if variable is not None:
        return f"${variable}", os.environ.get(variable, "").encode().strip()
    return "", None
