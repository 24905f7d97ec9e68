"""signals.py: one signal stops, two force, SIGHUP reloads; and what a race of works raises."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from extproc.supervise.signals import Signals, first_of


async def send(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)
    await asyncio.sleep(0.05)


def test_the_first_stops_and_the_second_forces() -> None:
    """A patient person and an impatient one."""

    async def main() -> None:
        did: list[str] = []
        with Signals(force=lambda: did.append("force"), reload=lambda: did.append("reload")) as signals:
            await send(signal.SIGHUP)
            assert (did, signals.stop.is_set()) == (["reload"], False)
            await send(signal.SIGTERM)
            assert (did, signals.stop.is_set()) == (["reload"], True)
            await send(signal.SIGINT)
            assert did == ["reload", "force"]
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # a third ends this process

    asyncio.run(main())


def test_without_a_reload_a_closed_terminal_stops() -> None:
    """SIGHUP's first meaning."""

    async def main() -> None:
        with Signals(force=lambda: None) as signals:
            await send(signal.SIGHUP)
            assert signals.stop.is_set()

    asyncio.run(main())


def test_work_is_cancelled_by_a_stop_and_its_errors_come_through() -> None:
    """A start that hangs must not hold up Ctrl-C; one that fails says so."""

    async def fails() -> None:
        raise ValueError("no")

    async def answers() -> int:
        return 7

    async def main() -> None:
        with Signals(force=lambda: None) as signals:
            assert await signals.unless_stopped(answers()) == 7
            with pytest.raises(ValueError, match="no"):
                await signals.unless_stopped(fails())
            asyncio.get_running_loop().call_later(0.02, os.kill, os.getpid(), signal.SIGINT)
            assert await signals.unless_stopped(asyncio.sleep(60)) is None

    asyncio.run(main())


def test_first_of_raises_its_own_works_errors_and_leaves_others_tasks() -> None:
    """A bug in a background work is not swallowed."""

    async def fails() -> None:
        raise ValueError("no")

    async def main() -> None:
        theirs = asyncio.create_task(asyncio.sleep(60))
        with pytest.raises(ValueError, match="no"):
            await first_of(theirs, fails(), asyncio.sleep(60))
        assert not theirs.done()
        theirs.cancel()

    asyncio.run(main())
