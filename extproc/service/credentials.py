"""How the service proves who it is, and what it knows again: its run folder, TLS, the keys of tickets.

Owns where keys come from: the token, Redis, or a file of this service's own. A ticket that was sealed before
a restart, or by a service that shares the token or Redis, is known; anybody else's is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config
from extproc.config.places import SOCKET_PATH_BYTES_MAX, key_file, orders_socket, run_folder
from extproc.wire.seal import KEY_BYTES, Seal
from extproc.wire.tls import TlsFiles

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The operators' socket, and the file of the key of tickets."""

    orders: Path
    key: Path


def place_of(config: Config) -> RunFolder | None:
    """The service's place on this machine; None where there can be none, which is said."""
    listen = config.service.listen[0]
    try:
        folder = run_folder(listen, config.service.run_dir)
        orders = orders_socket(folder, listen)
        if len(os.fsencode(orders)) > SOCKET_PATH_BYTES_MAX:
            raise OSError(0, f"the path of a socket has at most {SOCKET_PATH_BYTES_MAX} bytes", str(orders))
    except OSError as error:
        log.warning(
            "operators' orders are taken at the admin port alone: %s: %s; set service.run_dir",
            error.filename,
            error.strerror,
        )
        return None
    return RunFolder(orders, key_file(folder, listen))


def tls_of(config: Config) -> TlsFiles | None:
    """The files of the decision port's TLS; None in the clear. Raises ConfigError where they are no good."""
    tls = config.service.tls
    if tls is None:
        return None
    files = TlsFiles(
        certificate=Path(tls.certificate),
        key=Path(tls.key),
        client_ca=Path(tls.client_ca) if tls.client_ca is not None else None,
    )
    check_tls(files, "service.tls")
    return files


def check_tls(files: TlsFiles, where: str) -> None:
    """Raises ConfigError where a server's files are no good; `where` is the setting that names them."""
    for file in filter(None, (files.key, files.certificate, files.client_ca)):
        try:
            file.read_bytes()
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            raise ConfigError([Problem(str(file), None, where, message)]) from error
    try:
        files.context()
    except ssl.SSLError as error:
        message = f"is no certificate with its key (and authority), as PEM: {error.reason or error}"
        raise ConfigError([Problem(str(files.certificate), None, where, message)]) from error


def seal_of(tokens: Sequence[str], file: Path | None) -> Seal:
    """The seal of a service that begins. `tokens`: the first one's key seals; else the file's, which is made
    where there is none."""
    keys = [hashlib.sha256(b"steersman ticket\0" + token.encode()).digest() for token in reversed(tokens)]
    # Its own first: it knows what it sealed before it had a token.
    return Seal([*([kept] if file is not None and (kept := _kept(file)) else []), *keys])


def _kept(file: Path) -> bytes | None:
    """The file's key; None where neither can be read nor written, which is said."""
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(file)
        new = file.with_name(f"{file.name}.{os.getpid()}")
        key = secrets.token_bytes(KEY_BYTES)
        made = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(made, key.hex().encode())
        finally:
            os.close(made)
        new.replace(file)
    except (OSError, ValueError) as error:
        log.warning(
            "%s: the key of tickets cannot be kept (%s): what runs over a restart is charged by prediction",
            file,
            error.strerror if isinstance(error, OSError) else error,
        )
        return None
    return key


def _read(file: Path) -> bytes:
    """Raises ValueError for what is not this service's own."""
    opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        stat = os.fstat(opened)
        text = os.read(opened, 4 * KEY_BYTES)
    finally:
        os.close(opened)
    if stat.st_uid != os.getuid() or stat.st_mode & 0o077:
        raise ValueError("it is not its user's alone; remove it")
    key = bytes.fromhex(text.decode("ascii", "replace").strip())
    if len(key) != KEY_BYTES:
        raise ValueError("it is no key; remove it")
    return key
