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


class BindError(OSError):
    """An address cannot be listened on; the message names it and the mend."""


def bind(server: Any, address: str, *, credentials: Any = None, private: bool = False) -> str:
    """Listen; returns the address with its real port. Raises BindError.

    `credentials` are TLS's, for ports. A `private` socket is its owner's alone from the first moment.
    """
    unix, setting = address.startswith("unix:"), "service.run_dir" if private else "service.listen"
    if unix:
        path = Path(address.removeprefix("unix:"))
        if not path.parent.is_dir():
            raise BindError(f"cannot listen on {address}: {path.parent} is not a folder; make it first")
        # grpc replaces any socket it finds: right for one left by a killed predecessor, but a living
        # one would go on without its clients and know nothing of it.
        if path.is_socket() and _answers(path):
            raise BindError(_taken(address, setting))
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
