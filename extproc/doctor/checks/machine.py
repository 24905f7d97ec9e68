"""Checks of the machine that this runs on: it stands for the service's only where that runs here too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from extproc.doctor.evidence import Evidence, Failed
from extproc.doctor.finding import Check, Said, error, warning

#: Two connections a stream, and room.
FILES_OPEN_MIN: Final = 4096
FREE_BYTES_MIN: Final = 256 * 1024 * 1024
#: Files that are kept of each log, the one being written included.
FILES_KEPT: Final = 5


def files_open(evidence: Evidence) -> Iterator[Said]:
    """Enough descriptors for the streams."""
    most = evidence.machine.files_open_max
    if 0 <= most < FILES_OPEN_MIN:
        yield warning(
            f"a process here may open {most} files: about {most // 3} streams at once",
            "raise it before starting Envoy: ulimit -n 65536 (systemd: LimitNOFILE=65536)",
        )


def disks(evidence: Evidence) -> Iterator[Said]:
    """Room where logs are written."""
    config = evidence.config
    sizes = {config.audit.file: config.audit.bytes_max, config.record.file: config.record.bytes_max}
    for file, free in evidence.machine.disks.items():
        if isinstance(free, Failed):
            yield error(
                f"{file} cannot be written: {free.why}",
                f"make the folder, and let the service's user write: {file}",
            )
            continue
        wanted = min(FILES_KEPT * sizes.get(file, 0), 100 * FREE_BYTES_MIN)
        if free < max(FREE_BYTES_MIN, wanted):
            yield warning(
                f"{free / 1e9:.1f} GB are free for {file}, which may come to {wanted / 1e9:.1f} GB",
                "free some, move the file, or lower its bytes_max",
            )


def _no_logs(evidence: Evidence) -> str:
    return "" if evidence.machine.disks else "no file is written (audit.file, record.file)"


CHECKS: Final = (
    Check(id="machine.files-open", about="enough open files are allowed", look=files_open),
    Check(id="machine.disks", about="there is room for logs", look=disks, missing=_no_logs),
)
