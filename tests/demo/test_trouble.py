"""trouble.py: the faults that come by themselves, with a clock that does not wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from extproc.demo import trouble
from extproc.demo.faults import Done, FaultError
from extproc.demo.running import Notes, RunningDemo, RunningReplica
from extproc.demo.trouble import EVERY_S, FIRST_S, LASTS_S, TURNS, Trouble

NAMES = ("cheap-a100", "cheap-h100", "strong-a100", "strong-h100")


class EndOfTestError(Exception):
    """The clock has run out."""


class Stage:
    """A demo that can be noted in, and a clock that stops the play after `turns` sleeps."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, turns: int) -> None:
        self.said: list[str] = []
        self.slept: list[float] = []
        self.did: list[str] = []
        self.turns = turns
        self.refuses = False
        self.meddle_at = -1
        self.demo = RunningDemo(
            pid=1, began=1, url="", service="", service_pid=None, run_dir=str(folder), nodes=(),
            replicas=tuple(
                RunningReplica(
                    number=number, name=name, address=f"127.0.0.1:{number}", pool="p", node="n", gpu=0,
                    clock_mhz=1000, pid=None,
                )
                for number, name in enumerate(NAMES, start=1)
            ),
        )  # fmt: skip

        async def strike(_: RunningDemo, kind: str, *, value: str, target: str, noted: bool) -> Done:
            assert not noted, "its own faults are nobody else's"
            if self.refuses:
                raise FaultError("it is loading")
            self.did.append(f"{kind}={value} {target}")
            return Done(did="", watch="health falls")

        async def mend(_: RunningDemo, target: str) -> None:
            self.did.append(f"mend {target}")

        monkeypatch.setattr(trouble, "strike", strike)
        monkeypatch.setattr(trouble, "mend", mend)
        self.trouble = Trouble(
            demo=lambda: self.demo, notes=Notes(folder), say=self.said.append, sleep=self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == self.meddle_at:
            self.demo.note("demo-fault: somebody broke something")
        if len(self.slept) > self.turns:
            raise EndOfTestError


def test_each_fault_is_said_when_it_comes_and_when_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn, for 20 s of each minute, with the way to have none; each is taken off before the next."""
    stage = Stage(tmp_path, monkeypatch, turns=2 * len(TURNS))
    with pytest.raises(EndOfTestError):
        asyncio.run(stage.trouble.run())
    assert stage.slept == [FIRST_S, *[LASTS_S, EVERY_S - LASTS_S] * len(TURNS)]
    assert stage.did[:4] == ["throttle=0.4 2", "mend 2", "slow=4 3", "mend 3"]
    assert stage.said[:3] == [
        "fault laid on: throttle on 2 cheap-h100 for 20 s (--no-faults turns this off)",
        "watch: health falls",
        "fault taken off: throttle on 2 cheap-h100",
    ]


def test_whoever_breaks_something_has_the_demo_to_himself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an order of demo-fault nothing more comes by itself, and nothing of theirs is mended."""
    stage = Stage(tmp_path, monkeypatch, turns=99)
    stage.meddle_at = 2
    asyncio.run(stage.trouble.run())
    assert stage.did == ["throttle=0.4 2"]
    assert "demo-fault clear" in stage.said[-1]


def test_a_part_that_is_away_costs_one_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, nothing is mended that was not laid, and the next comes."""
    stage = Stage(tmp_path, monkeypatch, turns=4)
    stage.refuses = True
    with pytest.raises(EndOfTestError):
        asyncio.run(stage.trouble.run())
    assert stage.did == []
    assert stage.said[0] == "no fault laid on 2 cheap-h100: it is loading"
