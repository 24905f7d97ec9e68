"""A container's health, told by exit code: 0 serving, 1 not. `health.py ADDRESS` asks grpc.health.v1 there.

    health.py 127.0.0.1:50051                     # or unix:/run/steersman/extproc.sock
    health.py --connected-to-port 50052           # an agent: is it connected to a service?

Owns these two questions. Knows nothing of what is served.
"""

from __future__ import annotations

import sys
from pathlib import Path

TIMEOUT_S = 2.0
ESTABLISHED = "01"
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def serving(address: str) -> bool:
    """Whether the server as a whole says SERVING."""
    import grpc

    from extproc._pb import health_pb2

    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}", file=sys.stderr)
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def connected(port: int, tables: tuple[str, ...] = TABLES) -> bool:
    """Whether this network namespace has an established connection to a port of that number elsewhere."""
    wanted = f":{port:04X}"
    for table in tables:
        lines = Path(table).read_text(encoding="ascii").splitlines()[1:] if Path(table).exists() else []
        for _, _, remote, state, *_ in (line.split() for line in lines):
            if remote.endswith(wanted) and state == ESTABLISHED:
                return True
    print(f"no connection to port {port}", file=sys.stderr)
    return False


def main(arguments: list[str]) -> int:
    """0 healthy, 1 not, 2 asked wrongly."""
    if len(arguments) == 2 and arguments[0] == "--connected-to-port" and arguments[1].isdigit():
        return 0 if connected(int(arguments[1])) else 1
    if len(arguments) == 1 and not arguments[0].startswith("-"):
        return 0 if serving(arguments[0]) else 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
