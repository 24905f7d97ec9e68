"""Where a running demo says what it is made of, so that `demo-fault` and `fleet` find it.

Owns one small file a demo, `PID.json` in a private folder of the user's. A file whose demo has died is no
demo: process ids are believed only with the moment at which the process began, and a part's only while it
is a child of its demo.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from extproc.config.places import loopback, orders_at, private_folder
from extproc.config.plain import own_file, service_of
from extproc.supervise.admin_link import AdminLink, Link
from extproc.supervise.asking import ServiceLink, ServiceSilentError

if TYPE_CHECKING:
    from extproc.demo.parts import Parts
    from extproc.demo.replicas import DemoFleet
    from extproc.supervise.gateway import SupervisedGateway

FILE_BYTES_MAX = 64 * 1024
#: The service's default; another one is found by its `service.listen`.
DEFAULT_ADDRESS = "127.0.0.1:50051"
#: Lines that a demo shows of what was done to it.
NOTES = "notes.log"


class RunningReplica(msgspec.Struct, frozen=True, kw_only=True):
    """A simulated replica; `pid` None while it is being restarted."""

    number: int
    name: str
    address: str
    pool: str
    node: str
    gpu: int
    clock_mhz: int
    pid: int | None


class RunningNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node: its agent's process and the file of its cards' faults."""

    name: str
    faults: str
    agent_pid: int | None


class RunningDemo(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be broken."""

    pid: int
    began: int
    url: str
    #: The page, with its token; "" where there is none.
    page: str = ""
    service: str
    service_pid: int | None
    run_dir: str
    replicas: tuple[RunningReplica, ...]
    nodes: tuple[RunningNode, ...]

    def node_of(self, replica: RunningReplica) -> RunningNode:
        """The node that a replica runs on."""
        return next(node for node in self.nodes if node.name == replica.node)

    def owns(self, pid: int | None) -> bool:
        """Whether a process is this demo's child, so that a signal cannot hit a stranger."""
        return pid is not None and _stat(pid)[0] == self.pid

    def note(self, line: str) -> None:
        """Say something that the demo shows."""
        with contextlib.suppress(OSError), Path(self.run_dir, NOTES).open("a", encoding="utf-8") as notes:
            notes.write(line + "\n")


class Notes:
    """The lines that others have noted, each once."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / NOTES
        self._read = self._path.stat().st_size if self._path.exists() else 0

    def new(self) -> list[str]:
        """What was noted since the last call."""
        try:
            if self._path.stat().st_size == self._read:
                return []
            with self._path.open("rb") as notes:
                notes.seek(self._read)
                data = notes.read(FILE_BYTES_MAX)
        except OSError:
            return []
        self._read += len(data)
        return data.decode(errors="replace").splitlines()


class NoDemoError(Exception):
    """No demo runs; the message says where it was looked for."""


def folder() -> Path:
    """The user's own folder; made 0700. OSError where none can be made, or somebody else holds its name."""
    return private_folder("steersman-demo")


def began(pid: int) -> int:
    """When a process began, in the kernel's ticks; 0 for none."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[int, int]:
    """A process's parent and beginning; zeros for none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0, 0
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), int(fields[19])


@contextmanager
def announced(run_dir: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """The file of this process's demo; gone at the end. In `run_dir`, and said, where no other is."""
    try:
        place = folder()
    except OSError as error:
        report(f"demo-fault will not find this demo: {error.filename}: {error.strerror}")
        place = run_dir
    path = place / f"{os.getpid()}.json"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def described(fleet: DemoFleet, gateway: SupervisedGateway, parts: Parts, *, run_dir: Path) -> RunningDemo:
    """This process's demo as it stands."""
    return RunningDemo(
        pid=os.getpid(),
        began=began(os.getpid()),
        url=gateway.url,
        page=gateway.page_url,
        service=fleet.service,
        service_pid=gateway.service.pid,
        run_dir=str(run_dir),
        replicas=tuple(
            RunningReplica(
                number=replica.number,
                name=replica.name,
                address=replica.address,
                pool=replica.pool,
                node=replica.node,
                gpu=replica.gpu,
                clock_mhz=replica.card.clock_mhz,
                pid=parts.replicas[replica.name].pid,
            )
            for replica in fleet.replicas
        ),
        nodes=tuple(
            RunningNode(name=node.name, faults=str(node.faults), agent_pid=parts.agents[node.name].pid)
            for node in fleet.nodes
        ),
    )


def announce(path: Path, demo: RunningDemo) -> None:
    """Write the file, whole or not at all, for this user's eyes alone."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_bytes(msgspec.json.encode(demo))
    new.replace(path)


def find(pid: int | None = None) -> RunningDemo:
    """The running demo, or the one of that process; the youngest of several. Raises NoDemoError."""
    try:
        place = folder()
    except OSError as error:
        raise NoDemoError(f"{error.filename}: {error.strerror}") from None
    found = [demo for path in place.glob("*.json") if (demo := _read(path)) is not None]
    if pid is not None:
        found = [demo for demo in found if demo.pid == pid]
    if not found:
        which = "demo" if pid is None else f"demo with pid {pid}"
        raise NoDemoError(f"no {which} of this user runs (looked in {place}); start one: steersman demo")
    return max(found, key=lambda demo: demo.began)


def _loopback(address: str) -> bool:
    try:
        return loopback(address)
    except ValueError:  # a name, say
        return False


async def link_to(address: str | None) -> Link:
    """A service: at the address given; else the configuration's of this folder, the default one's or the
    running demo's, whichever answers first in that order.

    `http://…` and `https://…` are an admin port's, and so is an ip:port at which no service of this machine
    takes orders.
    """
    if address is not None:
        if address.startswith(("http://", "https://")):
            return AdminLink(address)
        if address.startswith("localhost:"):
            address = f"127.0.0.1:{address.removeprefix('localhost:')}"
        here = address.startswith("unix:") or orders_at(address) is not None or _loopback(address)
        return ServiceLink(address) if here else AdminLink(f"http://{address}")
    first: ServiceLink | None = None
    for each in _usual():
        link = ServiceLink(each)
        try:
            await link.status()
        except ServiceSilentError:
            if first is None:
                first = link  # whose silence is told, where nobody answers
            else:
                await link.close()
        else:
            if first is not None:
                await first.close()
            return link
    assert first is not None  # the default address is always tried
    return first


def _usual() -> Iterator[str]:
    """Where a service is looked for when no address is given."""
    configured = service_of(own_file())
    if configured is not None and configured != DEFAULT_ADDRESS:
        yield configured
    yield DEFAULT_ADDRESS
    with contextlib.suppress(NoDemoError):
        yield find().service


def _read(path: Path) -> RunningDemo | None:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            return None
        demo = msgspec.json.decode(path.read_bytes(), type=RunningDemo)
    except (OSError, msgspec.MsgspecError):
        return None
    if demo.began and began(demo.pid) == demo.began:
        return demo
    # A demo that was killed left it.
    with contextlib.suppress(OSError):
        path.unlink()
    return None
