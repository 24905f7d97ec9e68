"""Addresses before anything listens on them: free, stale or taken.

Owns the wording of what is wrong, which names the setting. A check can be overtaken, so what starts
afterwards still says when it cannot bind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom

from extproc.addresses import split
from extproc.config.model import Config

#: Below Linux's ephemeral ports (32768 and up): no outgoing connection can take one meanwhile.
FREE_PORTS = range(20_000, 32_000)


def addresses_of(config: Config) -> Iterator[tuple[str, str]]:
    """Every address that `up` will listen on, with its setting."""
    yield "gateway.listen", config.gateway.listen
    yield "gateway.envoy_admin", config.gateway.envoy_admin
    for index, address in enumerate(config.service.listen):
        yield f"service.listen[{index}]", address
    for index, address in enumerate(config.service.ads_listen):
        yield f"service.ads_listen[{index}]", address
    for index, address in enumerate(config.telemetry.listen if config.telemetry is not None else ()):
        yield f"telemetry.listen[{index}]", address
    if config.admin is not None:
        yield "admin.listen", config.admin.listen


def problems(config: Config) -> list[str]:
    """What keeps the configured addresses from being listened on; removes stale unix sockets."""
    found = []
    for setting, address in addresses_of(config):
        wrong = _unix_problem(address) if address.startswith("unix:") else tcp_problem(address)
        if wrong:
            found.append(f"{setting}: {address} {wrong}")
    return found


def tcp_problem(address: str) -> str:
    """What keeps an ip:port from being listened on; "" where nothing does."""
    host, port = split(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()  # two sockets may share a bind with SO_REUSEADDR, but not a listen
        except OSError as error:
            match error.errno:
                case errno.EADDRINUSE:
                    return "is taken by another process; stop that one or set another port"
                case errno.EADDRNOTAVAIL:
                    return "is not an address of this machine"
                case errno.EACCES:
                    return "needs privileges (a port below 1024); set a higher port"
                case _:
                    return f"cannot be listened on: {os.strerror(error.errno or 0)}"
    return ""


def _unix_problem(address: str) -> str:
    path = Path(address.removeprefix("unix:"))
    if not path.parent.is_dir():
        return f"cannot be made: {path.parent} is not a folder; make it first"
    if not path.exists():
        return ""
    if not path.is_socket():
        return "is a file and no socket; move it away or set another path"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            # Nobody listens: a killed predecessor left it.
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return ""
        except OSError as error:
            return f"cannot be asked: {error.strerror}"
    return "is taken by another process; stop that one or set another path"


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on just now, all different."""
    found: list[int] = []
    for port in SystemRandom().sample(FREE_PORTS, len(FREE_PORTS)):
        if len(found) == count:
            break
        if not tcp_problem(f"127.0.0.1:{port}"):
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} free ports between {FREE_PORTS.start} and {FREE_PORTS.stop - 1}")
    return found
