"""A gRPC call, as the service's logic sees it and as a transport carries it: two small interfaces.

Owns what both transports agree on. Handlers are told of messages and told again when what they wrote has gone
out; they never wait, so that no call needs a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Protocol


class GrpcStatus(IntEnum):
    """The codes of gRPC that are answered here."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class RpcCall(Protocol):
    """The transport's side of one call."""

    def metadata(self) -> Iterable[tuple[str, str]]:
        """What the caller sent beside its messages; names are lower case."""

    def write(self, messages: Sequence[bytes], *, end: bool = False) -> None:
        """Send these in order, and with `end` nothing after them: the call ends well.

        `RpcHandler.sent` says when all of it has left; nothing more is written until then.
        """

    def fail(self, status: GrpcStatus, message: str) -> None:
        """End the call with a status other than OK."""


class RpcHandler(Protocol):
    """The service's side of one call."""

    #: No message is given while it is set; the caller's further ones wait in its own window.
    busy: bool

    def message(self, data: bytes) -> None:
        """The caller's next message."""

    def sent(self) -> None:
        """What was written last has left whole: it is past the peer's windows."""

    def sent_all(self) -> None:
        """The caller has no more to say. A call that is neither answered nor busy after it ends with OK."""

    def closed(self) -> None:
        """The call is over, however it ended; nothing can be written. Told once, last."""


#: What begins a call.
Begin = Callable[[RpcCall], RpcHandler]
#: What is served, by path: `/package.Service/Method`.
Methods = Mapping[str, Begin]


class Unary:
    """A call of one message, answered at once by `answer`; whatever more is sent is not read."""

    __slots__ = ("_answer", "_call", "busy")

    def __init__(self, call: RpcCall, answer: Callable[[bytes, RpcCall], bytes | None]) -> None:
        """`answer` returns None when it has ended the call by itself."""
        self._call, self._answer = call, answer
        self.busy = False

    def message(self, data: bytes) -> None:
        """Answer it."""
        self.busy = True
        answer = self._answer(data, self._call)
        if answer is not None:
            self._call.write((answer,), end=True)

    def sent(self) -> None:
        """It is over."""

    def sent_all(self) -> None:
        """Nothing was asked."""
        self._call.fail(GrpcStatus.INTERNAL, "a call of one message had none")

    def closed(self) -> None:
        """Nothing is kept."""
