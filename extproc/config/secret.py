"""The secret of the keys' hashes, from a file or the environment.

Owns the reading alone. It is read by the service at its start and at a reload, not by `steersman check`,
which may run where the secret is not.
"""

from __future__ import annotations

import os
from pathlib import Path

from extproc.config.load import ConfigError, Problem
from extproc.config.model import IdentitySection

SECRET_BYTES_MIN = 16


def key_secret(identity: IdentitySection) -> bytes | None:
    """The secret, without blanks around it; None where none is named. Raises ConfigError."""
    if identity.key_secret_file is not None:
        name = "identity.key_secret_file"
        try:
            secret = Path(identity.key_secret_file).read_bytes().strip()
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            raise ConfigError([Problem(identity.key_secret_file, None, name, message)]) from error
    elif identity.key_secret_env is not None:
        name = "identity.key_secret_env"
        secret = os.environ.get(identity.key_secret_env, "").encode().strip()
    else:
        return None
    if len(secret) < SECRET_BYTES_MIN:
        where = identity.key_secret_file or f"${identity.key_secret_env}"
        message = f"has {len(secret)} bytes; write {SECRET_BYTES_MIN} or more, from 'openssl rand -hex 32'"
        raise ConfigError([Problem(where, None, name, message)])
    return secret
