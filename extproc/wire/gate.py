"""Who may call the decision port: where a token is configured, whoever shows it.

Owns the check before a call is read. Health is asked by orchestrators without one, and first-token events
are sealed by themselves (seal.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from hmac import compare_digest
from typing import Any

import grpc

#: A longer token is refused unread.
TOKEN_CHARS_MAX = 4096
REFUSAL = "service.token is not shown"


class TokenCheck:
    """Tells calls with one of the tokens from those without; paths below `open_to_all` need none."""

    def __init__(
        self, tokens: Iterable[bytes], *, open_to_all: Collection[str], refused: Callable[[], None]
    ) -> None:
        self._digests = [hashlib.sha256(token).digest() for token in tokens]
        self._open = tuple(f"/{service}/" for service in open_to_all)
        self._told = refused

    def admit(self, path: str, metadata: Iterable[tuple[str, Any]]) -> bool:
        """Whether a call may go on; one that may not is counted."""
        if path.startswith(self._open) or self._shown(metadata):
            return True
        self._told()
        return False

    def _shown(self, metadata: Iterable[tuple[str, Any]]) -> bool:
        for name, value in metadata:
            if name == "authorization" and isinstance(value, str) and len(value) <= TOKEN_CHARS_MAX:
                kind, _, token = value.partition(" ")
                digest = hashlib.sha256(token.encode()).digest()
                if kind.lower() == "bearer" and any(compare_digest(digest, each) for each in self._digests):
                    return True
        return False


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """The check on grpc.aio."""

    def __init__(self, tokens: TokenCheck) -> None:
        self._tokens = tokens
        # A stream's handler takes unary calls as well, and reads nothing before it refuses.
        self._refusal = grpc.stream_stream_rpc_method_handler(self._refuse)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """grpc's own: the call's handler, or one that refuses."""
        if self._tokens.admit(details.method, details.invocation_metadata):
            return await continuation(details)
        return self._refusal

    async def _refuse(self, _: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)
