"""A name server of the tests' own: A records by name, "no such name" for all else, or failure."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Mapping, Sequence

#: A record's type and class, and answers' codes.
A, IN = 1, 1
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3


class NameServer:
    """Context manager; `names` are IPv4 addresses by name, None while the server fails."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self.names: Mapping[str, Sequence[str]] | None = names
        #: Names that were asked for, in order.
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, who = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answer(query), who)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode())
            at += 1 + size
        name, question = ".".join(labels).lower(), query[12 : at + 5]
        (kind,) = struct.unpack("!H", query[at + 1 : at + 3])
        self.asked.append(name)
        names = self.names
        if names is None:
            code, found = SERVER_FAILURE, []
        elif name not in names:
            code, found = NO_SUCH_NAME, []
        else:
            code, found = NO_ERROR, list(names[name]) if kind == A else []
        head = query[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, len(found), 0, 0)
        records = (b"\xc0\x0c" + struct.pack("!HHIH", A, IN, 1, 4) + socket.inet_aton(each) for each in found)
        return head + question + b"".join(records)
