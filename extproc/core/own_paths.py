"""Paths of the file that stand for several: `/v1/things/{id}` and `/v1/things/*`. Pure.

Owns what such a path matches, and which of two comes first. Part by part: a name in braces is one part of the
path, a `*` at the end one or more of them. No part that manages an engine is matched, nor one with other
characters than a plain path has, so that no pattern opens what a whole path may not (docs/routes.md).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

#: What a path ends with by which an engine is managed: whoever may call it takes it from everybody.
MANAGES: Final = frozenset(
    {
        *("load_lora_adapter", "unload_lora_adapter", "lora-adapters", "load", "unload"),
        *("sleep", "wake_up", "pause", "resume", "shutdown", "abort_request", "abort_requests"),
        *("reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache", "flush_cache", "freeze_gc"),
        *("collective_rpc", "start_profile", "stop_profile", "configure_logging", "set_internal_state"),
        *("update_weights", "update_weights_from_disk", "update_weights_from_tensor"),
        *("update_weights_from_distributed", "init_weights_update_group"),
        *("release_memory_occupation", "resume_memory_occupation", "slots", "props", "metrics"),
        *("server_info", "get_server_info", "scale_elastic_ep", "slow_down"),
    }
)
#: The longest path that is looked at, in parts.
PARTS_MAX: Final = 8
REST: Final = "*"
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")
#: Patterns kept taken apart: as many as a file can have, and those of a reload.
_KEPT_MAX: Final = 256


def is_pattern(path: str) -> bool:
    """Whether a route's path stands for several."""
    return "{" in path or path.endswith(f"/{REST}")


@lru_cache(maxsize=_KEPT_MAX)
def _parts(pattern: str) -> tuple[tuple[str, ...], bool]:
    """Its parts, "" for each that is open, and whether more may follow."""
    parts = pattern[1:].split("/")
    rest = parts[-1] == REST
    return tuple("" if part.startswith("{") else part for part in (parts[:-1] if rest else parts)), rest


def matches(pattern: str, path: str) -> bool:
    """Whether a path (without its query) is one of a pattern's."""
    wanted, rest = _parts(pattern)
    if not path.startswith("/"):
        return False
    found = path[1:].split("/", PARTS_MAX)
    if len(found) > PARTS_MAX or (len(found) <= len(wanted) if rest else len(found) != len(wanted)):
        return False
    if any(part and part != found[i] for i, part in enumerate(wanted)):
        return False
    opened = [part for i, part in enumerate(found) if i >= len(wanted) or not wanted[i]]
    return all(_PLAIN.fullmatch(part) and part not in (".", "..") and part not in MANAGES for part in opened)


def precedence(pattern: str) -> tuple[tuple[bool, ...], bool, int]:
    """Sorts patterns: a part that is written out before one that is open, from the left; then one without
    `*`; of two with it the longer."""
    parts, rest = _parts(pattern)
    return tuple(not part for part in parts) + (True,) * (PARTS_MAX - len(parts)), rest, -len(parts)


def same(one: str, other: str) -> bool:
    """Whether two patterns match the same paths: the names in braces say nothing."""
    return _parts(one) == _parts(other)
