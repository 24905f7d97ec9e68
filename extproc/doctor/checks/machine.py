"""Checks of the machine that this runs on: it stands for the service's only where that runs here too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from extproc.config.model import Config
from extproc.doctor.evidence import Evidence, Failed
from extproc.doctor.finding import Check, Said, error, warning

#: Two connections a stream, and room.
FILES_OPEN_MIN: Final = 4096
FREE_BYTES_MIN: Final = 256 * 1024 * 1024
#: Files that are kept of each log, the one being written included.
FILES_KEPT: Final = 5
#: Of the memory so much may be for what the caches keep: the service, Envoy and others need the rest.
CACHED_SHARE_MAX: Final = 0.5


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


def cached_bytes(config: Config, *, store: bool = True) -> tuple[int, str]:
    """What the caches may keep, bytes, and by which settings: answers, and questions of the semantic cache
    where a tenant has it. Without `store`, the service's own memory is meant: what is in Redis is not there,
    but questions are in both places."""
    cache = config.cache
    if cache is None:
        return 0, ""
    some = {"cache.bytes_max": cache.bytes_max if store or cache.store == "memory" else 0}
    if any(tenant.cache is not None and tenant.cache.semantic is not None for tenant in config.tenants):
        some["cache.semantic.bytes_max"] = cache.semantic.bytes_max
    return sum(some.values()), " + ".join(name for name, size in some.items() if size)


def memory(evidence: Evidence) -> Iterator[Said]:
    """What the caches may keep fits in."""
    (wanted, named), most = cached_bytes(evidence.config, store=False), evidence.machine.memory_bytes
    if most and wanted > CACHED_SHARE_MAX * most:
        yield warning(
            f"the caches may take {wanted >> 20} MiB ({named}) in the service's memory; a process here may "
            f"have {most >> 20} MiB: when they are full, the system ends it",
            f"lower {named.replace(' + ', ' or ')}, have cache.store redis, or give it more memory",
        )


def _no_cache(evidence: Evidence) -> str:
    return "" if evidence.config.cache is not None else "the configuration has no 'cache' section"


def _no_logs(evidence: Evidence) -> str:
    return "" if evidence.machine.disks else "no file is written (audit.file, record.file)"


CHECKS: Final = (
    Check(id="machine.files-open", about="enough open files are allowed", look=files_open),
    Check(id="machine.memory", about="what the caches keep fits in", look=memory, missing=_no_cache),
    Check(id="machine.disks", about="there is room for logs", look=disks, missing=_no_logs),
)
