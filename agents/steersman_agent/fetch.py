"""Asks a replica over HTTP: bounded in time and in size, and every way to fail has a name.

Owns the client session and what a failure is evidence of. Knows no engine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from extproc.patience import patient
from extproc.upstream import PLAIN, ReplicaAccess, read_bounded, tls_trouble
from steersman_agent.reply import Failure, PageReply, Reply
from steersman_agent.state import Symptom

#: An answer above this is cut off and counts as unwell: no page of an engine is that long.
RESPONSE_BYTES_MAX: Final = 4 * 1024 * 1024
#: Connections kept to one replica: metrics, health and a probe at once.
CONNECTIONS_PER_REPLICA: Final = 4


class Fetcher:
    """One client session for all replicas. Use inside its event loop; `close` when done."""

    def __init__(self) -> None:
        connector = aiohttp.TCPConnector(
            limit=0, limit_per_host=CONNECTIONS_PER_REPLICA, keepalive_timeout=60.0, use_dns_cache=True
        )
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True, trust_env=False
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def ask(
        self,
        url: str,
        *,
        timeout_s: float,
        body: Mapping[str, Any] | None = None,
        access: ReplicaAccess = PLAIN,
    ) -> Reply:
        """GET a URL, or POST a JSON body to it; never raises for what a replica does. `access` is how.

        The time is the agent's own: while it stalls itself, no replica is late.
        """
        how = access.asking()
        began_s = time.monotonic()
        try:
            async with patient(timeout_s):
                if body is None:
                    request = self._session.get(url, **how)
                else:
                    request = self._session.post(url, json=body, **how)
                async with request as response:
                    page = await read_bounded(response.content, RESPONSE_BYTES_MAX)
        except TimeoutError:
            return Failure(Symptom.TIMED_OUT, f"no answer within {timeout_s * 1000:.0f} ms")
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
            return Failure(Symptom.UNWELL, tls_trouble(error) or f"TLS: {error}")
        except aiohttp.ClientConnectorError as error:
            return Failure(Symptom.REFUSED, f"cannot connect: {error.os_error.strerror or error.os_error}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            disconnected = isinstance(error, aiohttp.ServerDisconnectedError)
            if why := tls_trouble(error) or (access.closed() if disconnected else ""):
                return Failure(Symptom.UNWELL, why)
            return Failure(Symptom.UNWELL, f"broken answer: {error or type(error).__name__}")
        if page is None:
            return Failure(Symptom.UNWELL, f"an answer above {RESPONSE_BYTES_MAX} bytes")
        return PageReply(response.status, page, time.monotonic() - began_s)
