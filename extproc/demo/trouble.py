"""A fault every now and then, so that there is something to see: laid on, said, and taken off again.

Owns which, when and for how long. They slow a replica down and fail no request. Whoever breaks something by
`demo-fault` has the demo to himself: from then on there are no more of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from extproc.demo.faults import FaultError, mend, strike
from extproc.demo.running import Notes, RunningDemo
from extproc.supervise.asking import ServiceSilentError

#: The first comes soon, since few look on for long.
FIRST_S, LASTS_S, EVERY_S = 15.0, 20.0, 60.0
#: How to have none of it.
OFF: Final = "--no-faults"
#: Kind, value and replica, in turn.
TURNS: Final = (
    ("throttle", "0.4", "2"),
    ("slow", "4", "3"),
    ("throttle", "0.6", "4"),
    ("slow", "3", "1"),
)

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """`demo` tells how it stands now, `notes` what others did to it, `say` takes a line for people."""

    demo: Callable[[], RunningDemo]
    notes: Notes
    say: Callable[[str], None]
    sleep: Sleep = asyncio.sleep

    async def run(self) -> None:
        """Until cancelled, or until somebody else breaks something."""
        await self.sleep(FIRST_S)
        for kind, value, target in cycle(TURNS):
            if self._others():
                return
            laid = await self._lay(kind, value, target)
            await self.sleep(LASTS_S)
            if self._others():
                # Theirs may be on the same replica, and `clear` ends both.
                self.say(
                    f"no more faults by themselves; `steersman demo-fault clear` ends what is left of {kind}"
                )
                return
            if laid:
                await self._mend(kind, target)
            await self.sleep(EVERY_S - LASTS_S)

    def _others(self) -> bool:
        return bool(self.notes.new())

    def _name(self, target: str) -> str:
        names = {str(each.number): each.name for each in self.demo().replicas}
        return f"{target} {names[target]}"

    async def _lay(self, kind: str, value: str, target: str) -> bool:
        try:
            done = await strike(self.demo(), kind, value=value, target=target, noted=False)
        except (FaultError, ServiceSilentError) as error:
            self.say(f"no fault laid on {self._name(target)}: {error}")
            return False
        self.say(f"fault laid on: {kind} on {self._name(target)} for {LASTS_S:g} s ({OFF} turns this off)")
        self.say(f"watch: {done.watch}")
        return True

    async def _mend(self, kind: str, target: str) -> None:
        try:
            await mend(self.demo(), target)
        except FaultError as error:
            self.say(f"{kind} on {self._name(target)} could not be taken off: {error}")
            return
        self.say(f"fault taken off: {kind} on {self._name(target)}")
