"""Where a service is found on its own machine: the operators' socket, and the key of its tickets.

Owns the rule by which a command finds the socket from `service.listen` alone, and that what lies there is
this user's own. Knows no configuration model: commands need it without one.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from extproc.addresses import ip_of

#: The configuration that commands read where none is named, and the variable that names another.
DEFAULT_FILE, FILE_VARIABLE = "steersman.yaml", "STEERSMAN_CONFIG"
#: A user's own folder, where a service listens on ports.
FOLDER = "steersman"
ORDERS_SUFFIX, KEY_SUFFIX = ".orders.sock", ".key"
#: The longest path of a unix socket, without its final zero.
SOCKET_PATH_BYTES_MAX = 107
#: What a service listens on, in the form that means every address of its machine.
_EVERYWHERE = ("0.0.0.0:", "[::]:")
_ODD = re.compile(r"[^A-Za-z0-9.-]")


def loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    if address.startswith("unix:"):
        return True
    return ip_of(address).is_loopback


def name_of(listen: str) -> str:
    """What a service that listens there is called in its run folder."""
    if listen.startswith("unix:"):
        return Path(listen.removeprefix("unix:")).name.removesuffix(".sock")
    return _ODD.sub("_", listen)


def run_folder(listen: str, given: str | None = None) -> Path:
    """The service's own folder, made where it is missing: `given`, the socket's that it listens on, or the
    user's. OSError where none can be had, or somebody else holds its name."""
    if given:
        folder = Path(given)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
    if listen.startswith("unix:"):
        return Path(listen.removeprefix("unix:")).parent
    socket_bytes = len(os.fsencode(f"/{name_of(listen)}{ORDERS_SUFFIX}"))
    return private_folder(FOLDER, bytes_max=SOCKET_PATH_BYTES_MAX - socket_bytes)


def orders_socket(folder: Path, listen: str) -> Path:
    """The operators' socket of a service in its folder."""
    return folder / (name_of(listen) + ORDERS_SUFFIX)


def address_of(listen: str, run_dir: str | None) -> str:
    """By what a service is found: its `service.listen`, or its operators' socket where that is elsewhere."""
    return listen if run_dir is None else f"unix:{orders_socket(Path(run_dir), listen)}"


def key_file(folder: Path, listen: str) -> Path:
    """Where a service keeps the key of its tickets."""
    return folder / (name_of(listen) + KEY_SUFFIX)


def orders_at(address: str) -> Path | None:
    """The operators' socket of the service of this machine that listens at `address`; None where none is.

    `address` may be the operators' socket itself.
    """
    if address.startswith("unix:"):
        named = Path(address.removeprefix("unix:"))
        if named.name.endswith(ORDERS_SUFFIX):
            return named if named.is_socket() else None
    port = address.rpartition(":")[2]
    listens = [address] if address.startswith("unix:") else [address, *(any_ + port for any_ in _EVERYWHERE)]
    for folder in _looked_in(address):
        for listen in listens:
            found = orders_socket(folder, listen)
            with contextlib.suppress(OSError):  # a folder that this user may not look into
                if found.is_socket():
                    return found
    return None


def _looked_in(address: str) -> Iterator[Path]:
    if address.startswith("unix:"):
        yield Path(address.removeprefix("unix:")).parent
    else:
        for folder in _places(FOLDER):
            with contextlib.suppress(OSError):
                if _is_own(folder):
                    yield folder


def private_folder(name: str, *, bytes_max: int | None = None) -> Path:
    """The user's own folder; made 0700. OSError where none can be made, or somebody else holds its name.

    One whose path has more than `bytes_max` bytes is passed over.
    """
    wrong: OSError | None = None
    for found in _places(name):
        if bytes_max is not None and len(os.fsencode(found)) > bytes_max:
            wrong = OSError(0, f"the path has more than {bytes_max} bytes", str(found))
            continue
        try:
            found.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            wrong = error
            continue
        if not _is_own(found):
            raise OSError(0, "is not this user's own private folder; remove it", str(found))
        return found
    raise wrong or OSError(0, "name a folder that this user may write to", "TMPDIR")


def _is_own(folder: Path) -> bool:
    stat = folder.lstat()
    return not folder.is_symlink() and stat.st_uid == os.getuid() and not stat.st_mode & 0o077


def _places(name: str) -> Iterator[Path]:
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_dir():
        yield Path(base) / name
    with contextlib.suppress(FileNotFoundError):  # there is no folder for temporary files
        yield Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
