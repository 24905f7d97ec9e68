"""How a pool's replicas are asked by us, from its section: the files of its TLS and its key, read.

Owns the reading alone: by the service at its start, at a reload and when a file changes, and by `doctor`; not
by `steersman check`, which may run where the files are not.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config, PoolConfig
from extproc.upstream import ReplicaAccess, client_context


def accesses(config: Config, keys: Mapping[str, str]) -> dict[str, ReplicaAccess]:
    """By pool. `keys` are the engines' own. Raises ConfigError where a file cannot be used."""
    return {
        pool.name: access_of(pool, keys.get(pool.name, ""), where=f"pools[{i}].upstream.tls")
        for i, pool in enumerate(config.pools)
    }


def access_of(pool: PoolConfig, key: str, *, where: str = "upstream.tls") -> ReplicaAccess:
    """Of one pool. Raises ConfigError."""
    upstream = pool.upstream
    headers = dict(upstream.headers.add)
    if upstream.key is not None and key:
        headers[upstream.key.header] = upstream.key.before + key
    return ReplicaAccess(
        context=_context(pool, where),
        server_name=upstream.asked_for(),
        path_prefix=upstream.path_prefix or "",
        headers=headers,
        keyed=upstream.key is not None,
        certified=upstream.tls is not None and upstream.tls.cert is not None,
        http2_alone=upstream.http2 is True,
    )


def files(config: Config) -> list[Path]:
    """What is read for them."""
    found: list[Path] = []
    for pool in config.pools:
        tls, key = pool.upstream.tls, pool.upstream.key
        if tls is not None:
            found += [Path(each) for each in (tls.ca, tls.cert, tls.key) if each]
        if key is not None and key.file:
            found.append(Path(key.file))
    return found


def _context(pool: PoolConfig, where: str) -> ssl.SSLContext | None:
    tls = pool.upstream.tls
    if tls is None:
        return None
    for name in ("ca", "cert", "key"):
        file = getattr(tls, name)
        if file is not None:
            try:
                with Path(file).open("rb") as opened:
                    opened.read(1)
            except OSError as error:
                message = f"cannot be read: {error.strerror}; write the path of a PEM file"
                raise ConfigError([Problem(file, None, f"{where}.{name}", message)]) from error
    try:
        return client_context(ca=tls.ca, cert=tls.cert, key=tls.key, min_version=tls.min_version)
    except (OSError, ValueError) as error:
        name, what = ("cert", "no certificate with its key") if _reads(tls.ca) else ("ca", "no certificates")
        message = (
            f"holds {what} that can be used ({getattr(error, 'reason', None) or error}); write PEM files"
        )
        raise ConfigError([Problem(str(getattr(tls, name)), None, f"{where}.{name}", message)]) from None


def _reads(ca: str | None) -> bool:
    try:
        client_context(ca=ca)
    except (OSError, ValueError):
        return False
    return True
