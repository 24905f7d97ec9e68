"""What the replicas of each pool say that they run, as their agents read it: one thing, or several.

Owns what follows from words that come and go: the last one stands until all say another.
No request pays for it.
"""

from __future__ import annotations

import logging
from typing import Final

from extproc.core.fleet import Fleet
from extproc.core.reports import SERVING

log = logging.getLogger(__name__)

#: Kinds of replicas that are named in a message.
SHOWN_MAX: Final = 5
SHOWN_CHARACTERS: Final = 80


class EngineRevisions:
    """By pool: `known` is what all that say anything say, `split` what they say where they disagree."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.split: dict[str, tuple[str, ...]] = {}

    def look(self, fleet: Fleet) -> tuple[set[str], set[str]]:
        """Look at all reports. The pools of which anything is new, and those that run another thing now, or
        several.

        A first word is new, and no other thing: who began just now has only not heard it before.
        """
        said: dict[str, set[str]] = {}
        for endpoint in fleet.endpoints:
            report = endpoint.report
            if report is not None and report.revision and report.state in SERVING:
                said.setdefault(endpoint.pool, set()).add(report.revision)
        new, other = set(), set()
        for pool, found in said.items():
            if len(found) > 1:
                if self.split.get(pool) != (several := tuple(sorted(found))):
                    self.split[pool] = several
                    new.add(pool)
                    # Whoever has just begun to run another thing has answered since, unheard, as the others.
                    other.add(pool)
                    shown = ", ".join(each[:SHOWN_CHARACTERS] for each in several[:SHOWN_MAX])
                    log.warning(
                        "the replicas of pool %s run different things, so none is cached: %s", pool, shown
                    )
                continue
            (one,) = found
            if self.split.pop(pool, None) is not None:
                new.add(pool)
            before = self.known.get(pool)
            if before != one:
                self.known[pool] = one
                new.add(pool)
                if before is not None:
                    other.add(pool)
                    log.info("pool %s runs %s now; its cached answers are gone", pool, one[:SHOWN_CHARACTERS])
        return new, other

    def keep(self, pools: set[str]) -> None:
        """Forget all but these."""
        for table in (self.known, self.split):
            for name in [name for name in table if name not in pools]:
                del table[name]
