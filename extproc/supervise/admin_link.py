"""Asks a service on another machine: through its admin port, with a token.

Owns the HTTP client of it, as `asking.ServiceLink` has the operators' socket. TLS is verified by the
system's authorities, and by those of SSL_CERT_FILE.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from extproc.supervise.asking import (
    ORDER_S_MAX,
    STATUS_BYTES_MAX,
    ServiceLink,
    ServiceRefusedError,
    ServiceSilentError,
)
from extproc.upstream import read_bounded

if TYPE_CHECKING:
    import aiohttp

#: The admin port's token, of `admin.tokens`.
TOKEN_ENV = "STEERSMAN_TOKEN"  # noqa: S105 (a name)


class AdminLink:
    """A service's admin port at `http://…` or `https://…`."""

    def __init__(self, url: str) -> None:
        self.address = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def serving(self) -> bool:
        """Whether it takes decisions, and has somewhere to send them. Raises ServiceSilentError."""
        return (await self._ask("GET", "/readyz", None))[0] == 200

    async def status(self) -> dict[str, Any]:
        """The service's own figures. Raises ServiceSilentError."""
        return self._told(*await self._ask("GET", "/api/v1/status", None))

    async def drain(self, address: str, *, draining: bool) -> bool:
        """Order an endpoint's drain or its end; false for an address that is not in the fleet."""
        return bool((await self.order("Drain", {"address": address, "draining": draining}))["found"])

    async def clear_faults(self, address: str) -> list[str] | None:
        """Say that an endpoint's GPU was seen to; the faults that ended, None for an unknown address."""
        answer = await self.order("ClearFaults", {"address": address})
        return list(answer["cleared"]) if answer["found"] else None

    async def order(self, method: str, body: object) -> dict[str, Any]:
        """An operator's command. Raises ServiceSilentError, and ValueError with what it says against it."""
        return self._told(*await self._ask("POST", f"/api/v1/orders/{method}", body))

    def _told(self, status: int, answer: dict[str, Any]) -> dict[str, Any]:
        if status == 200:
            return answer
        error = answer.get("error")
        said = str(error.get("message", "")) if isinstance(error, dict) else ""
        if status == 400:
            raise ValueError(said)
        if said and status in (401, 403, 421, 429):
            raise ServiceRefusedError(f"{self.address}: {said}; its token is taken from ${TOKEN_ENV}")
        raise ServiceSilentError(f"no Steersman's admin port answers at {self.address}")

    async def _ask(self, how: str, path: str, body: object) -> tuple[int, dict[str, Any]]:
        import aiohttp

        if self._session is None:
            token = os.environ.get(TOKEN_ENV, "")
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=aiohttp.ClientTimeout(total=ORDER_S_MAX),
            )
        try:
            # Its answers are never elsewhere: a redirect would take the token along.
            async with self._session.request(
                how, f"{self.address}{path}", json=body, allow_redirects=False
            ) as answer:
                raw = await read_bounded(answer.content, STATUS_BYTES_MAX)
                if raw is None:
                    raise ServiceSilentError(f"{self.address} answers more than {STATUS_BYTES_MAX} bytes")
                return answer.status, msgspec.json.decode(raw, type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            why = f": {error}" if isinstance(error, aiohttp.ClientConnectorCertificateError) else ""
            raise ServiceSilentError(f"no Steersman's admin port answers at {self.address}{why}") from None

    async def close(self) -> None:
        """Let go of the connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


#: Either way to a running service.
Link = ServiceLink | AdminLink
