"""A pool's members from a watched file, YAML or JSON:

    endpoints:
      - {address: 10.0.0.1:80, zone: a, region: eu, max_concurrent: 128}

Owns when the file is read and what is wrong in it (`file:path: message`, every mistake at once). A bad
file changes nothing: the last good members stay. A changed file is read once it has been still from one
look to the next: a writer may be half way through, and half a list can be good YAML.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from extproc.config.checks import dotted
from extproc.config.model import Section
from extproc.config.types import IpPort
from extproc.discovery.member import MEMBERS_MAX, DiscoveredMember, OnMembers

log = logging.getLogger(__name__)

SOURCE = "file"
POLL_S = 1.0
FILE_BYTES_MAX = 4 * 1024 * 1024
#: Mistakes that are told of one reading.
PROBLEMS_MAX = 50

#: libyaml where PyYAML was built with it: ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class FileEndpoint(Section):
    """An entry of the file."""

    address: IpPort
    """Where it listens, as ip:port."""
    zone: str = Field(default="", max_length=128)
    """Its availability zone."""
    region: str = Field(default="", max_length=128)
    """Its region."""
    max_concurrent: int | None = Field(default=None, ge=1, le=65_536)
    """Requests it takes at once; the pool's default when left out."""


class EndpointsFile(Section):
    """The whole file."""

    endpoints: list[FileEndpoint] = Field(max_length=MEMBERS_MAX)
    """All of the pool's members that this file knows; an empty list means none."""


class EndpointsError(Exception):
    """The file cannot be used; `problems` has every mistake as `file:path: message`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def parse(data: bytes, *, name: str) -> tuple[DiscoveredMember, ...]:
    """The members that a file's content lists; raises EndpointsError with every mistake."""
    try:
        tree = yaml.load(data, Loader=_LOADER)  # noqa: S506 (one of PyYAML's two safe loaders)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{mark.line + 1}:" if mark is not None else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise EndpointsError([f"{name}:{line} is not YAML: {what}"]) from error
    except (ValueError, RecursionError) as error:  # a date that no calendar has; nested too deeply
        raise EndpointsError([f"{name}: is not YAML: {error}"]) from error
    if not isinstance(tree, dict):
        raise EndpointsError([f"{name}: holds no mapping; begin with 'endpoints:'"])
    try:
        entries = EndpointsFile.model_validate(tree).endpoints
    except ValidationError as error:
        problems = [f"{name}:{dotted(tuple(e['loc']))}: {_wording(e)}" for e in error.errors()[:PROBLEMS_MAX]]
        raise EndpointsError(problems) from None
    first: dict[str, int] = {}
    repeated = [
        f"{name}:endpoints[{i}].address: {entry.address!r} is already at endpoints[{first[entry.address]}]"
        for i, entry in enumerate(entries)
        if first.setdefault(entry.address, i) != i
    ]
    if repeated:
        raise EndpointsError(repeated[:PROBLEMS_MAX])
    return tuple(DiscoveredMember(e.address, e.zone, e.region, e.max_concurrent) for e in entries)


def _wording(error: Any) -> str:
    if error["type"] == "missing":
        return "is missing; add it"
    if error["type"] == "extra_forbidden":
        return "is not a setting here"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]} (it is {error['input']!r:.60})"


@dataclass(frozen=True, slots=True)
class Signature:
    """What tells one state of a file from another."""

    inode: int
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Signature:
        """From what the system says of the file."""
        return cls(stat.st_ino, stat.st_mtime_ns, stat.st_size)


class FileWatch:
    """What is known of one file. Pure: looks at it come in as signatures, readings as bytes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._looks = 0
        self._seen: Signature | None = None
        self._read: Signature | None = None
        self._told: tuple[DiscoveredMember, ...] | None = None
        self._problems: list[str] = []

    def looked(self, signature: Signature | None) -> bool:
        """A look at the file (None: it is not there); gives whether it shall be read now."""
        self._looks += 1
        before, self._seen = self._seen, signature
        if signature is None:
            self._read = None
            self._fail([f"{self._name}: is not there"])
            return False
        if signature == self._read:
            return False
        if signature.size > FILE_BYTES_MAX:
            self.failed(f"it has {signature.size} bytes; at most {FILE_BYTES_MAX} are read")
            return False
        # At the start nothing is known that half a file could spoil, and nobody wants to wait.
        return self._looks == 1 or before == signature

    def read(self, signature: Signature, data: bytes) -> tuple[DiscoveredMember, ...] | None:
        """A reading, with the signature after it; gives the members when they changed, else None."""
        if signature != self._seen or len(data) != signature.size:
            return None  # it changed under the reader; the next look sees it
        self._read = signature
        try:
            members = parse(data, name=self._name)
        except EndpointsError as error:
            self._fail(error.problems)
            return None
        if self._problems:
            log.info("%s: is good again: %d endpoints", self._name, len(members))
        self._problems = []
        if members == self._told:
            return None
        self._told = members
        return members

    def failed(self, reason: str) -> None:
        """It is there and cannot be read."""
        self._fail([f"{self._name}: cannot be read: {reason}"])

    def _fail(self, problems: list[str]) -> None:
        if problems == self._problems:
            return
        kept = "nothing is known yet" if self._told is None else f"the last {len(self._told)} endpoints stay"
        for problem in problems:
            log.error("%s (%s)", problem, kept)
        self._problems = problems


class FileSource:
    """Looks at a pool's file until it is cancelled."""

    def __init__(
        self, pool: str, path: str | os.PathLike[str], on_members: OnMembers, *, poll_s: float = POLL_S
    ) -> None:
        self._pool = pool
        self._path = Path(path)
        self._watch = FileWatch(str(path))
        self._on_members = on_members
        self._poll_s = poll_s

    async def run(self) -> None:
        """One look each `poll_s`."""
        while True:
            await self.look()
            await asyncio.sleep(self._poll_s)

    async def look(self) -> None:
        """One look, and a reading when it shows something new. Off the loop: a disk may be slow."""
        members = await asyncio.to_thread(self._look)
        if members is not None:
            self._on_members(self._pool, SOURCE, members)

    def _look(self) -> tuple[DiscoveredMember, ...] | None:
        try:
            if not self._watch.looked(Signature.of(self._path.stat())):
                return None
            with self._path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
                signature = Signature.of(os.fstat(file.fileno()))
        except FileNotFoundError:
            self._watch.looked(None)
            return None
        except OSError as error:
            self._watch.failed(error.strerror or str(error))
            return None
        return self._watch.read(signature, data)
