"""Whether a strategy takes the parameters that it is given; its code is imported where it is given any."""

from __future__ import annotations

from collections.abc import Mapping


def wrong_with(strategy: str, given: Mapping[str, float | int | bool | str]) -> str | None:
    """What is wrong, and what to write instead; None when it takes them."""
    if not given:
        return None
    # Late: what decides takes a third of a check's time to import, and most files have no parameters.
    from extproc.core.strategies import build

    try:
        build(strategy, given)
    except ValueError as error:
        return str(error)
    return None
