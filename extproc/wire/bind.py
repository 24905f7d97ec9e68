"""Listening on ports and unix sockets, without taking one from somebody who lives.

Owns what is wrong with an address, in words.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

#: How long a unix socket may take to accept before it counts as somebody's.
PROBE_S = 0.5
#: Connections that wait to be accepted: Envoys come back together after a restart.
BACKLOG = 1024


class BindError(OSError):
    """An address cannot be listened on; the message names it and the mend."""


def bind(
    server: Any,
    address: str,
    *,
    credentials: Any = None,
    private: bool = False,
    setting: str = "service.listen",
) -> str:
    """Listen; returns the address with its real port. Raises BindError, which names the `setting`.

    `credentials` are TLS's, for ports. A `private` socket is its owner's alone from the first moment.
    """
    unix = address.startswith("unix:")
    if unix:
        _checked(address, setting)
    masked = os.umask(0o177) if private else None
    try:
        if credentials is None or unix:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise BindError(_taken(address, setting)) from error
    finally:
        if masked is not None:
            os.umask(masked)
    return address if unix else f"{address.rpartition(':')[0]}:{port}"


def listening(address: str) -> socket.socket:
    """A socket that is bound there, for whoever accepts on it. Raises BindError."""
    where: str | tuple[str, int]
    if address.startswith("unix:"):
        path = _checked(address, "service.listen")
        if path.is_socket():
            path.unlink()  # a killed predecessor left it
        bound, where = socket.socket(socket.AF_UNIX), str(path)
    else:
        host, _, port = address.rpartition(":")  # 0 is a port here: any that is free
        host = host.strip("[]")
        bound, where = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET), (host, int(port))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # every address, as grpc has it
    try:
        bound.bind(where)
        # Two sockets may share a bind with SO_REUSEADDR, but not a listen.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise BindError(_taken(address, "service.listen")) from error
    bound.setblocking(False)
    return bound


def _checked(address: str, setting: str) -> Path:
    """A unix socket's path, in a folder, and nobody's who lives. Raises BindError.

    grpc replaces any socket it finds, as we do: right for one left by a killed predecessor, but a living one
    would go on without its clients and know nothing of it.
    """
    path = Path(address.removeprefix("unix:"))
    if not path.parent.is_dir():
        raise BindError(f"cannot listen on {address}: {path.parent} is not a folder; make it first")
    if path.is_socket() and _answers(path):
        raise BindError(_taken(address, setting))
    return path


def _taken(address: str, setting: str) -> str:
    return f"cannot listen on {address}: it is taken or not this machine's; free it or change {setting}"


def _answers(path: Path) -> bool:
    """Whether somebody listens on a unix socket; its file alone says nothing."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # no answer in time, or no right to ask: not ours to remove
    return True
