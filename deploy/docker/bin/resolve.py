"""Writes a copy of steersman.yaml in which services and collector are addresses: `resolve.py IN OUT …`.

Envoy's configuration names them by `ip:port` alone; a cluster names them by Services, whose addresses stay
as long as the Services do. Owns the looking up, and the order: the n-th name is `gateway.services[n]`.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
import sys
import time
from pathlib import Path
from typing import Any

import yaml

#: A name that is not known yet is asked for again, so often and so long.
RETRY_S = 1.0
PATIENCE_S = 60.0


def address(name: str, port: int, *, patience_s: float = PATIENCE_S) -> str:
    """`ip:port` of a name; the first of its addresses. Raises OSError when it has none in time."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][4][0]
        except socket.gaierror as error:
            if time.monotonic() >= deadline:
                raise OSError(f"{name}: {error.strerror}") from error
            time.sleep(RETRY_S)
        else:
            ip = ipaddress.ip_address(found)
            return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def resolved(
    config: dict[str, Any], *, services: list[tuple[str, int]], otlp: tuple[str, int] | None
) -> None:
    """Puts the addresses into a configuration."""
    gateway = config.setdefault("gateway", {})
    if services:
        gateway["services"] = [address(*each) for each in services]
    if otlp is not None:
        gateway.setdefault("tracing", {})["otlp_grpc"] = address(*otlp)


def _host_port(text: str, default: int | None = None) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon and default is not None:
        return text, default
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return host, int(port)


def main() -> int:
    """0 when written, 1 when a name has no address."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--services", default="", help="names, by comma, in Envoy's order")
    parser.add_argument("--port", type=int, default=50051, help="where each of them listens")
    parser.add_argument("--otlp", type=_host_port, help="the trace collector's host:port")
    given = parser.parse_args()
    config = yaml.safe_load(given.source.read_text(encoding="utf-8"))
    names = [_host_port(name, given.port) for name in given.services.split(",") if name]
    try:
        resolved(config, services=names, otlp=given.otlp)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    given.target.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
