"""How the C library keeps the memory that large bodies need, so that the system is not asked for each.

Owns two settings of glibc's allocator. Elsewhere (musl, macOS) nothing is set, and nothing else changes.
"""

from __future__ import annotations

import ctypes
from typing import Final

#: The numbers of mallopt's parameters, as glibc's malloc.h has them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Blocks below this come from the heap; larger ones from the system, and go back to it at once. A body is
#: copied a few times on its way, and by default each copy above 128 KiB is new memory, page by page.
SYSTEM_BLOCK_BYTES: Final = 4 * 1024 * 1024
#: So much free memory at the heap's end is kept for the next body; what is beyond it goes back.
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024


def keep_heap() -> bool:
    """Set both for this process; False where its C library has no such settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(_MMAP_THRESHOLD, SYSTEM_BLOCK_BYTES), mallopt(_TRIM_THRESHOLD, KEPT_BYTES_MAX)])
