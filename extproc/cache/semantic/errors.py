"""How often given answers were wrong, as it is told: the share that checks leave possible."""

from __future__ import annotations

from math import sqrt
from typing import Final

#: 95 %, one-sided.
_Z: Final = 1.645


def upper(wrong: int, checks: int) -> float:
    """The share of wrong ones is below this with 95 % (Wilson's score interval, one-sided); 1 without any."""
    if not checks:
        return 1.0
    share, extra = wrong / checks, _Z * _Z / checks
    spread = _Z * sqrt(share * (1.0 - share) / checks + extra / (4.0 * checks))
    return (share + extra / 2.0 + spread) / (1.0 + extra)
