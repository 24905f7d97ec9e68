"""Secrets from files and the environment: of the keys' hashes, the decision port's token, the answers' keys.

Owns the reading alone. They are read by the service at its start and at a reload, and by who renders Envoy's
configuration; not by `steersman check`, which may run where they are not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from extproc import extras
from extproc.config.cache import CacheConfig
from extproc.config.decision_port import TOKEN_CHARS_MIN, Service
from extproc.config.load import ConfigError, Problem
from extproc.config.model import IdentitySection

SECRET_BYTES_MIN = 16
#: What goes through an HTTP header and Envoy's own formats unchanged.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
#: A key of AES-256, in hex.
_KEY = re.compile(r"[0-9A-Fa-f]{64}")


def key_secret(identity: IdentitySection) -> bytes | None:
    """The secret, without blanks around it; None where none is named. Raises ConfigError."""
    found = _named("identity.key_secret", identity.key_secret_file, identity.key_secret_env)
    if found is None:
        return None
    secret, name, where = found
    if len(secret) < SECRET_BYTES_MIN:
        message = f"has {len(secret)} bytes; write {SECRET_BYTES_MIN} or more, from 'openssl rand -hex 32'"
        raise ConfigError([Problem(where, None, name, message)])
    return secret


def service_tokens(service: Service) -> list[str]:
    """The tokens of the decision port, the one that Envoy shows first; none where none is named.

    Raises ConfigError.
    """
    found = _named("service.token", service.token_file, service.token_env)
    if found is None:
        return []
    secret, name, where = found
    tokens = secret.decode("utf-8", "replace").split()
    short = any(len(each) < TOKEN_CHARS_MIN for each in tokens)
    if not tokens or short or not all(_TOKEN.fullmatch(each) for each in tokens):
        message = (
            f"has no token, or one of less than {TOKEN_CHARS_MIN} characters or other ones than "
            "A-Z a-z 0-9 . _ ~ + / = -; write one a line, from 'openssl rand -hex 32'"
        )
        raise ConfigError([Problem(where, None, name, message)])
    return tokens


def answer_keys(cache: CacheConfig | None) -> list[bytes]:
    """The keys that answers in Redis are encrypted with, the first encrypts; none where none is named.

    Raises ConfigError.
    """
    found = None if cache is None else _named("cache.keys", cache.keys_file, cache.keys_env)
    if found is None:
        return []
    secret, name, where = found
    texts = secret.decode("utf-8", "replace").split()
    if not texts or not all(_KEY.fullmatch(text) for text in texts):
        message = (
            "has no key, or one that is not 64 hex digits; write one a line, from 'openssl rand -hex 32'"
        )
        raise ConfigError([Problem(where, None, name, message)])
    if extras.missing("encryption"):
        raise ConfigError([Problem("", None, name, extras.needed("encryption", by="it"))])
    return [bytes.fromhex(text) for text in texts]


def _named(setting: str, file: str | None, env: str | None) -> tuple[bytes, str, str] | None:
    """What a file or a variable holds, the setting's name, and where it was read."""
    if file is not None:
        name = f"{setting}_file"
        try:
            return Path(file).read_bytes().strip(), name, file
        except OSError as error:
            raise ConfigError([Problem(file, None, name, f"cannot be read: {error.strerror}")]) from error
    if env is not None:
        return os.environ.get(env, "").encode().strip(), f"{setting}_env", f"${env}"
    return None
