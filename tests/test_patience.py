"""Time-outs of one's own time: a stall of ours is nobody's silence, and who is always late still judges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from extproc.patience import LATE_S_MIN, LATE_SHARE, LATE_SLICES_MAX, SLICES, OwnTime, patient

TIMEOUT_S = 8.0
SLICE_S = TIMEOUT_S / SLICES


def lasted(late_s: Callable[[int], float], timeout_s: float = TIMEOUT_S) -> tuple[int, float]:
    """How many slices a time-out took whose nth ended so late, and how long it was."""
    patience, number, now_s = OwnTime(timeout_s, now_s=100.0), 0, 100.0
    while True:
        now_s = patience.due_s + late_s(number)
        number += 1
        if patience.spent(now_s=now_s):
            return number, now_s - 100.0


def test_a_punctual_one_takes_its_time() -> None:
    """Neither more nor less; what is a little late counts as punctual."""
    assert lasted(lambda _: 0.0) == (SLICES, TIMEOUT_S)
    assert lasted(lambda _: LATE_SHARE * SLICE_S)[0] == SLICES
    assert lasted(lambda _: LATE_S_MIN, timeout_s=0.08)[0] == SLICES


@pytest.mark.parametrize("stalled", [0, 3, SLICES - 1])
def test_a_stall_of_ours_is_not_counted(stalled: int) -> None:
    """An hour in the first, a middle or the last slice: it is waited for once more."""
    slices, took_s = lasted(lambda number: 3_600.0 if number == stalled else 0.0)
    assert (slices, took_s) == (SLICES + 1, TIMEOUT_S + SLICE_S + 3_600.0)


def test_who_is_always_late_judges_all_the_same() -> None:
    """After LATE_SLICES_MAX of them late slices count."""
    assert lasted(lambda _: 2 * SLICE_S)[0] == LATE_SLICES_MAX + SLICES


def test_asked_too_early_nothing_has_passed() -> None:
    """A slice ends when it is due."""
    patience = OwnTime(TIMEOUT_S, now_s=0.0)
    assert not any(patience.spent(now_s=SLICE_S / 2) for _ in range(100))
    assert patience.due_s == SLICE_S


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while it waits, and whenever a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        waits = self._selector.select  # type: ignore[attr-defined]

        def select(timeout_s: float | None) -> object:
            found = waits(0)
            if not found and timeout_s:
                self.now_s += timeout_s
            return found

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now_s


def play(scene: Callable[[VirtualLoop], Awaitable[None]]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(scene(loop))
    finally:
        loop.close()


def test_in_an_event_loop_silence_ends_it() -> None:
    """After its time, to the turn, with asyncio's own exception."""

    async def scene(loop: VirtualLoop) -> None:
        with pytest.raises(TimeoutError):
            async with patient(TIMEOUT_S):
                await asyncio.sleep(3_600)
        assert loop.time() == pytest.approx(TIMEOUT_S)
        async with patient(TIMEOUT_S):
            await asyncio.sleep(TIMEOUT_S - 1)
        await asyncio.sleep(TIMEOUT_S)  # nothing is left that would end us

    play(scene)


def test_in_an_event_loop_an_answer_that_lies_unread_counts() -> None:
    """The loop stood for a minute and the answer came meanwhile: asyncio's time-out would have ended it."""

    async def answered(loop: VirtualLoop, within: Callable[[float], object]) -> None:
        answer = loop.create_future()
        loop.call_at(loop.time() + 1.0, setattr, loop, "now_s", loop.time() + 60.0)  # the stall
        loop.call_at(loop.time() + 60.1, answer.set_result, None)
        async with within(TIMEOUT_S):  # type: ignore[attr-defined]
            await answer

    async def scene(loop: VirtualLoop) -> None:
        await answered(loop, patient)
        with pytest.raises(TimeoutError):
            await answered(loop, asyncio.timeout)

    play(scene)


def test_a_cancellation_from_outside_stays_one() -> None:
    """It is no time-out."""

    async def scene(_: VirtualLoop) -> None:
        async def wait() -> None:
            async with patient(TIMEOUT_S):
                await asyncio.sleep(3_600)

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    play(scene)


def test_on_a_real_loop_a_blocked_thread_is_no_silence() -> None:
    """Blocked for five times the time-out, and the answer is taken."""

    async def scene() -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, time.sleep, 1.0)
        loop.call_later(0.06, reader.feed_data, b"x")
        async with patient(0.2):
            assert await reader.read(1) == b"x"

    asyncio.run(scene())
