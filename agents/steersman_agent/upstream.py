"""How the agent asks its replicas: `upstream` of agent.yaml, with the names of the pool's in steersman.yaml.

Owns the reading of its files. A key or a certificate is read again when its file changes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from extproc.upstream import PLAIN, ReplicaAccess, bare_prefix, before_key, client_context
from steersman_agent.section import AgentSection

#: What is read of an engine's key.
KEY_BYTES_MAX = 4096
_KEY = re.compile(r"[!-~]{1,4096}")


class ReplicaTls(AgentSection):
    """TLS to the replica; verified by `ca` or the system's authorities."""

    ca: Path | None = Field(default=None, strict=False)
    #: The name in its certificate; the host of `url`, else the address, when left out.
    server_name: str | None = Field(default=None, min_length=1, max_length=253)
    cert: Path | None = Field(default=None, strict=False)
    key: Path | None = Field(default=None, strict=False)
    min_version: Literal["1.2", "1.3"] = "1.2"


class ReplicaKey(AgentSection):
    """The engine's own key: a file or an environment variable that holds it."""

    file: Path | None = Field(default=None, strict=False)
    env: str | None = Field(default=None, min_length=1)
    header: Literal["authorization", "x-api-key"] = "authorization"
    #: What stands before it; 'Bearer' in authorization and nothing in x-api-key when left out.
    scheme: str | None = Field(default=None, max_length=32, pattern=r"^[A-Za-z0-9_-]*$")

    def read(self) -> str:
        """The key; empty where it cannot be read just now, or is none."""
        try:
            if self.file is not None:
                with self.file.open("rb") as file:
                    key = file.read(KEY_BYTES_MAX + 1).decode("latin-1").strip()
            else:
                key = os.environ.get(self.env or "", "").strip()
        except OSError:
            return ""
        return key if _KEY.fullmatch(key) else ""

    @property
    def before(self) -> str:
        """What stands before the key in its header, with the blank."""
        return before_key(self.header, self.scheme)


class ReplicaHeaders(AgentSection):
    """Headers on each question."""

    add: dict[str, str] = Field(default={}, max_length=32)


class ReplicaUpstream(AgentSection):
    """How the replica is reached."""

    tls: ReplicaTls | None = None
    path_prefix: Annotated[str, AfterValidator(bare_prefix)] = ""
    headers: ReplicaHeaders = ReplicaHeaders()
    key: ReplicaKey | None = None

    def files(self) -> list[Path]:
        """What is read for it."""
        tls, key = self.tls, self.key
        found = [tls.ca, tls.cert, tls.key] if tls is not None else []
        return [each for each in (*found, key.file if key is not None else None) if each is not None]

    def access(self) -> ReplicaAccess:
        """With its files read. Raises OSError where TLS has one that cannot be used."""
        if self == _PLAIN:
            return PLAIN
        headers, tls = dict(self.headers.add), self.tls
        if self.key is not None and (key := self.key.read()):
            headers[self.key.header] = self.key.before + key
        return ReplicaAccess(
            context=client_context(
                ca=_text(tls.ca), cert=_text(tls.cert), key=_text(tls.key), min_version=tls.min_version
            )
            if tls is not None
            else None,
            server_name=(tls.server_name if tls is not None else None) or "",
            path_prefix=self.path_prefix,
            headers=headers,
            keyed=self.key is not None,
            certified=tls is not None and tls.cert is not None,
        )

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """What a single value cannot tell, as (path, message)."""
        tls, key = self.tls, self.key
        if tls is not None and (tls.cert is None) != (tls.key is None):
            yield f"tls.{'key' if tls.key is None else 'cert'}", "is missing; cert and key go together"
        for name in ("ca", "cert", "key") if tls is not None else ():
            file = getattr(tls, name)
            if file is not None and not file.is_file():
                yield f"tls.{name}", f"{file} is no file; write the path of a PEM file"
        if key is None:
            return
        if (key.file is None) == (key.env is None):
            yield (
                "key",
                "has both file and env; keep one of them" if key.file else "names no key; write file or env",
            )
        elif key.file is not None and not key.file.is_file():
            yield "key.file", f"{key.file} is no file; put the engine's key there"
        elif key.env is not None and not os.environ.get(key.env):
            yield "key.env", f"the environment has no {key.env}; set it to the key"
        elif not key.read():
            yield (
                "key",
                "is not one word of 1 to 4,096 printable ASCII characters; write the engine's key there",
            )


_PLAIN = ReplicaUpstream()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
