"""The two scripts in Redis: how they are called, and on whose keys.

Owns the keys of a tenant's books and the texts of lua/. Knows no lease.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha1
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from extproc.core.quota import QuotaLimits
from extproc.state.quota.journal import Op
from extproc.state.quota.lease import LEASE_NS
from extproc.state.quota.payload import ending

#: A script's text and its SHA-1.
Script = tuple[str, str]


def read(name: str) -> Script:
    """A script of lua/ with what all of them share."""
    folder = files("extproc.state.quota") / "lua"
    text = "".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("common", name))
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


class QuotaScripts:
    """The commands that run the scripts, for one service."""

    def __init__(self, *, service: str, prefix: str, limits: QuotaLimits, counts: Counter[str]) -> None:
        self.limits = limits
        self._service, self._prefix, self._counts = service, prefix, counts
        self._reserve, self._settle = read("reserve"), read("settle")
        self._keys: dict[str, tuple[str, ...]] = {}

    @property
    def services_key(self) -> str:
        """Where services say that they are there."""
        return f"{{{self._prefix}:quota}}:services"

    def reserve(
        self,
        tenant: str,
        payload: dict[str, Any],
        *,
        epoch: str,
        reservation_id: str = "",
        attempt: str = "",
    ) -> tuple[Any, ...]:
        """The command that reserves, lends or gives back."""
        said = {**payload, "id": reservation_id, "attempt": attempt, "epoch": epoch}
        return self._command(self._reserve, tenant, said)

    def settle(self, op: Op) -> tuple[Any, ...]:
        """The command that ends a reservation, or says that it runs."""
        return self._command(self._settle, op.account.tenant, ending(op))

    async def load(self, client: Redis) -> None:
        """Have the server know both."""
        for text, _ in (self._reserve, self._settle):
            await client.script_load(text)

    async def reload(self, client: Redis) -> None:
        """The server has forgotten them."""
        self._counts["script_reloaded"] += 1
        await self.load(client)

    async def call(self, client: Redis, command: tuple[Any, ...]) -> Any:
        """The answer to one command, whether or not the server knows its script."""
        try:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]
        except NoScriptError:
            self._counts["script_reloaded"] += 1
            text = self._reserve[0] if command[1] == self._reserve[1] else self._settle[0]
            return await client.execute_command("EVAL", text, *command[2:])  # type: ignore[no-untyped-call]

    def _command(self, script: Script, tenant: str, payload: dict[str, Any]) -> tuple[Any, ...]:
        said = {
            **payload,
            "service": self._service,
            "ttl": max(self.limits.reservation_ttl_ns // 1_000_000, 1),
            "lease_ms": LEASE_NS // 1_000_000,
        }
        return ("EVALSHA", script[1], 5, *self._keys_of(tenant), msgspec.msgpack.encode(said))

    def _keys_of(self, tenant: str) -> tuple[str, ...]:
        keys = self._keys.get(tenant)
        if keys is None:
            if len(self._keys) >= self.limits.scopes_max:
                self._keys.clear()
            tag = f"{{{self._prefix}:quota:{quote(tenant, safe='')}}}"
            keys = self._keys[tenant] = tuple(f"{tag}:{part}" for part in "brxez")
        return keys
