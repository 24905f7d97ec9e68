"""How replicas are asked by the service, and their keys for Envoy: read again when a file changes.

Owns the pace of looking at the files, and what a file that became unusable means: what was read last holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from extproc import http1
from extproc.addresses import split
from extproc.config.access import accesses, files
from extproc.config.engine_keys import engine_keys
from extproc.config.load import ConfigError
from extproc.config.model import Config
from extproc.core.reach import Look
from extproc.patience import patient
from extproc.service.parts import Part
from extproc.service.reload import Reread
from extproc.upstream import PLAIN, FileSeen, ReplicaAccess, file_seen, tls_trouble

log = logging.getLogger(__name__)

#: How often the files are looked at.
POLL_S = 1.0
#: A page that every engine serves, and keeps behind its key where it has one.
KEYED_PATH = "/v1/models"
#: What an engine answers that does not take a key.
KEY_REFUSED = frozenset({401, 403})
NOT_FOUND = 404


class LookFailedError(Exception):
    """A look that found what it can name: `look`, and the reason with its mend."""

    def __init__(self, look: Look, why: str) -> None:
        super().__init__(why)
        self.look, self.why = look, why


async def ask(
    address: str, path: str, timeout_s: float, *, access: ReplicaAccess = PLAIN, name: str = ""
) -> int | None:
    """The status of a GET at a replica; None where no answer comes in time.

    `name` is what it is asked for. The time is our own: while we stall, nobody is late. Raises
    ConnectionRefusedError, and LookFailedError where TLS or the key is what is wrong.
    """
    try:
        async with patient(timeout_s):
            status = await _get(access, address, name, path)
            keyed = access.keyed and status < 500
            if keyed and await _get(access, address, name, KEYED_PATH) in KEY_REFUSED:
                refusal = "does not take the engine's key; write the right one under upstream.key"
                raise LookFailedError(Look.KEY_REFUSED, refusal)
            return status
    except ConnectionRefusedError:
        raise
    except (OSError, TimeoutError) as error:
        why = tls_trouble(error)
        if why is not None:
            raise LookFailedError(Look.UNTRUSTED, why) from error
        if access.http2_alone and isinstance(error, http1.NoHttpError):
            return NOT_FOUND  # somebody is there, who speaks HTTP/2 alone
        return None


async def _get(access: ReplicaAccess, address: str, name: str, path: str) -> int:
    host, port = split(address)
    headers = {"host": name or address, "user-agent": "steersman", **access.headers}
    whole = access.path_prefix + path
    status, _ = await http1.ask(
        "GET", host, port, whole, headers=headers, tls=access.context, server_name=name
    )
    return status


class Upstreams(Part):
    """Keys and accesses by pool. `changed` hears of a new key, in the event loop."""

    name = "upstreams"

    def __init__(
        self,
        read: Reread,
        *,
        pool_of: Callable[[str], str | None],
        asked_for: Callable[[str], str],
        changed: Callable[[dict[str, str]], Awaitable[None]],
    ) -> None:
        """`pool_of` is an address's pool, `asked_for` the name by which it is asked for."""
        self._pool_of, self._asked_for, self._changed = pool_of, asked_for, changed
        self._task: asyncio.Task[None] | None = None
        self.reread = 0
        self._refused = ""
        self.put(read)

    def put(self, read: Reread) -> None:
        """A configuration with what was read for it."""
        self._config, self.keys, self._accesses = read.config, read.engine_keys, read.accesses
        self._seen = _signatures(read.config)

    def apply(self, config: Config) -> None:
        """The same with other settings of a strategy (tuning)."""
        self._config = config

    async def start(self) -> None:
        """Begin to look at the files."""
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def status(self) -> dict[str, object]:
        """Figures, without any secret."""
        return {"reread": self.reread, "unusable": self._refused}

    def access(self, address: str) -> ReplicaAccess:
        """How a replica is asked."""
        return self._accesses.get(self._pool_of(address) or "", PLAIN)

    def way(self, address: str) -> tuple[ReplicaAccess, str]:
        """The same, and the name by which it is asked for."""
        return self.access(address), self._asked_for(address)

    async def ask(self, address: str, path: str, timeout_s: float) -> int | None:
        """As `ask`, in the way of the address's pool."""
        access = self.access(address)
        return await ask(address, path, timeout_s, access=access, name=self._asked_for(address))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self.look()

    async def look(self) -> None:
        """Read the files again where one changed."""
        config = self._config
        seen = await asyncio.to_thread(_signatures, config)
        if seen == self._seen or config is not self._config:
            return
        self._seen = seen
        try:
            keys = await asyncio.to_thread(engine_keys, config)
            found = await asyncio.to_thread(accesses, config, keys)
        except ConfigError as error:
            self._refused = str(error.problems[0])
            log.error("%s; what was read last holds", self._refused)
            return
        if config is not self._config:
            return  # a reload has read them meanwhile
        self._refused, self._accesses, before, self.keys = "", found, self.keys, keys
        self.reread += 1
        log.info("keys and certificates of the replicas were read again")
        if keys != before:
            await self._changed(keys)


def _signatures(config: Config) -> list[FileSeen | None]:
    return [file_seen(path) for path in files(config)]
