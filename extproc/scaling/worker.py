"""What takes long: simulations that check a plan, and the fitting of trends, in a process beside the service.

Owns the process's two ends: `main` reads jobs and writes answers (frames of four bytes of length and msgpack,
on standard input and output), `Worker` starts it, asks, and ends it where it is late. The service's loop
waits for none of it: where nothing comes back, the model's word stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from math import isfinite
from math import log as ln
from typing import BinaryIO, Final

import msgspec

from extproc.pipes import begun, ended, frame_of, framed, read_frame
from extproc.scaling.check import Checked, CheckJob, check

log = logging.getLogger(__name__)

#: A frame is no longer.
FRAME_MAX: Final = 16 * 1024 * 1024
#: Requests a second that are played, before it is known.
PLAYED_PER_S: Final = 500.0
#: After an end that was not asked for it is started again after so long, twice as long each time.
AGAIN_S: Final = 10.0
AGAIN_MAX_S: Final = 3_600.0
#: Grains that a fit is made of: the newest.
FITTED_MAX: Final = 1_440
#: Fewer say nothing.
FITTED_MIN: Final = 60
#: It gives way to whoever serves.
NICE: Final = 15
#: It may hold so much memory of its own, in bytes: six times what a fit takes. Above it the job fails and the
#: process ends, long before the machine's memory does.
MEMORY_MAX: Final = 2 * 1024**3
#: Libraries of linear algebra begin a thread a core otherwise, each with tens of megabytes set aside.
THREADS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class FitJob(msgspec.Struct, frozen=True, kw_only=True, tag="fit"):
    """Arrivals a second, a grain each, without gaps, the oldest first."""

    rates: list[float]


class Fitted(msgspec.Struct, frozen=True, kw_only=True, tag="fitted"):
    """The parameters of `forecast.Damped`; `by` says what fitted them, "" where nothing could."""

    level: float = 0.0
    trend: float = 0.0
    damped: float = 0.0
    by: str = ""


Job = CheckJob | FitJob
Answer = Checked | Fitted


def fit(job: FitJob) -> Fitted:
    """ETS(A,Ad,N) of the logarithm by maximum likelihood (statsmodels); nothing where the extra `forecast` is
    not installed, or the past says too little."""
    some = [each for each in job.rates[-FITTED_MAX:] if isfinite(each) and each >= 0.0]
    if len(some) < FITTED_MIN or max(some) <= 0.0:
        return Fitted()
    if find_spec("statsmodels") is None:
        return Fitted()
    import numpy as np
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    floor = max(max(some) * 1e-3, 1e-6)
    model = ETSModel(
        np.array([ln(max(each, floor)) for each in some]), error="add", trend="add", damped_trend=True
    )
    found = dict(zip(model.param_names, model.fit(disp=False).params, strict=True))
    alpha = float(found["smoothing_level"])
    # Its trend follows by β of the error, ours by α·β.
    trend = float(found["smoothing_trend"]) / max(alpha, 1e-6)
    damped = float(found["damping_trend"])
    if not all(isfinite(each) for each in (alpha, trend, damped)):
        return Fitted()
    return Fitted(
        level=min(max(alpha, 0.01), 1.0), trend=min(max(trend, 0.0), 1.0), damped=min(max(damped, 0.0), 0.98),
        by="statsmodels",
    )  # fmt: skip


def bounded() -> None:
    """Hold this process to MEMORY_MAX and one thread; a stricter bound that it was given stays."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MAX, hard))


def main(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer jobs until nobody asks any more."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    bounded()
    decoder = msgspec.msgpack.Decoder(Job)
    speed = PLAYED_PER_S
    while (frame := read_frame(stdin, most=FRAME_MAX)) is not None:
        job = decoder.decode(frame)
        answer: Answer
        if isinstance(job, CheckJob):
            answer, speed = check(job, requests_per_play_s=speed)
        else:
            answer = fit(job)
        stdout.write(framed(answer))
        stdout.flush()


class Worker:
    """The service's end. One job at a time."""

    def __init__(self, *, clock: Callable[[], int], command: tuple[str, ...] = ()) -> None:
        self._clock = clock
        self._command = command or (sys.executable, "-m", "extproc.scaling.worker")
        self._process: asyncio.subprocess.Process | None = None
        self._again_ns = 0
        self._pause_s = AGAIN_S
        self._decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
        self.busy = False
        #: Jobs that were answered, that were late, and ends that nobody asked for.
        self.counts: Counter[str] = Counter()

    @property
    def free(self) -> bool:
        """Whether a job may be given now: none is under way, and it is not being left alone after an end."""
        return not self.busy and self._clock() >= self._again_ns

    async def ask(self, job: Job, *, timeout_s: float) -> Answer | None:
        """The answer; None where it is late, ended or cannot be started."""
        if not self.free:
            return None
        self.busy = True
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._ask(job)
        except (OSError, EOFError, asyncio.IncompleteReadError, msgspec.DecodeError, TimeoutError) as error:
            self.counts["late" if isinstance(error, TimeoutError) else "ended"] += 1
            log.warning(
                "scaling: no answer of the worker process (%s): the model's word stands", error or "late"
            )
            await self.stop()
            self._again_ns = self._clock() + int(self._pause_s * 1e9)
            self._pause_s = min(2.0 * self._pause_s, AGAIN_MAX_S)
            return None
        finally:
            self.busy = False
        self.counts["answered"] += 1
        self._pause_s = AGAIN_S
        return answer

    async def _ask(self, job: Job) -> Answer:
        if self._process is None or self._process.returncode is not None:
            self._process = await begun(self._command)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(framed(job))
        await process.stdin.drain()
        return self._decoder.decode(await frame_of(process.stdout, most=FRAME_MAX))

    async def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            await ended(process)


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
