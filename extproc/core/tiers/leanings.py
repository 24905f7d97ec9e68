"""Where requests of each kind went last, so that two places that are nearly equal do not take turns.

Owns what a kind is and the bound. A kind is a pool, the prompt's size by powers of four, and whether it is
complex. Only choices by comparison count: what a broken link or a tenant has decided says nothing.
"""

from __future__ import annotations

from typing import Final, Literal

from extproc.core.tiers.choice import is_complex
from extproc.core.tiers.values import HERE, THERE, TierChoice, TierReason, TierRequest, TierRule

#: Kinds remembered; at the bound the one that was seen first is forgotten, which then begins at home.
LEANINGS_MAX: Final = 4_096
_COMPARED: Final[frozenset[TierReason]] = frozenset(
    ("near", "centre_full", "complex", "sooner", "late", "full", "hot")
)


class Leanings:
    """The last side of each kind; `HERE` where nothing is known."""

    __slots__ = ("_out",)

    def __init__(self) -> None:
        self._out: dict[tuple[str, int, bool], bool] = {}

    def of(self, pool: str, request: TierRequest, rule: TierRule) -> Literal["here", "there"]:
        """Where a request of a pool leans."""
        return THERE if self._out.get(_kind(pool, request, rule)) else HERE

    def went(self, pool: str, request: TierRequest, rule: TierRule, choice: TierChoice) -> None:
        """A request of a pool was placed."""
        if choice.reason not in _COMPARED:
            return
        kind = _kind(pool, request, rule)
        if kind not in self._out and len(self._out) >= LEANINGS_MAX:
            del self._out[next(iter(self._out))]
        self._out[kind] = choice.where == THERE

    def __len__(self) -> int:
        return len(self._out)


def _kind(pool: str, request: TierRequest, rule: TierRule) -> tuple[str, int, bool]:
    return pool, (max(0, request.prompt_tokens).bit_length() + 1) // 2, is_complex(request, rule)
