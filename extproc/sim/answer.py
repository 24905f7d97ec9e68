"""The two ways to answer a generation request: whole, with timing headers, or as a stream.

Owns permits-then-validation order, TGI's answer headers and the pace of a stream. The routes decide
which dialect is spoken; the engine says when tokens exist.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from extproc.sim import sse
from extproc.sim.engine import EngineJob, RequestTiming, SimEngine, validation_error
from extproc.sim.protocol import (
    Parameters,
    PlannedAnswer,
    SimError,
    check_parameters,
    invalid,
    overloaded,
    plan_answer,
)

COMPUTE_TYPE: Final = "1-simulated"
OUTPUT_TOKENS_HEADER: Final = "x-sim-output-tokens"


class Answers:
    """Generates over one engine."""

    def __init__(self, engine: SimEngine) -> None:
        self.engine = engine

    def _submit(
        self, request: web.Request, prompts: Sequence[str], parameters: Parameters, *, stream: bool
    ) -> list[EngineJob]:
        """All or none: a permit each, then validation, then the queue; `SimError` otherwise."""
        engine = self.engine
        forced = _forced_tokens(request)
        jobs: list[EngineJob] = []
        try:
            for attempt, prompt in enumerate(prompts):
                if not engine.has_permit:
                    raise overloaded()
                check_parameters(parameters, self.engine.spec, stream=stream)
                plan = plan_answer(
                    prompt, parameters, self.engine.spec, forced_tokens=forced, attempt=attempt
                )
                jobs.append(engine.submit(plan, streaming=stream))
        except SimError as error:
            for job in jobs:
                engine.abandon(job)
            raise validation_error(error, engine.metrics) from None
        return jobs

    async def whole(
        self,
        request: web.Request,
        prompts: Sequence[str],
        parameters: Parameters,
        *,
        best_of: bool = False,
    ) -> tuple[list[PlannedAnswer], dict[str, str]]:
        """Generate to the end; the answers' plans and TGI's timing headers.

        The answers of one `best_of` count as one request, several prompts as several.
        """
        engine = self.engine
        began_s = time.monotonic()
        if not best_of:
            engine.metrics.requests += len(prompts)
        jobs = self._submit(request, prompts, parameters, stream=False)
        validation_s = time.monotonic() - began_s
        try:
            ends = [await job.end() for job in jobs]
        finally:
            for job in jobs:
                engine.abandon(job)
        plans = [job.plan for job in jobs]
        slowest = max(ends, key=lambda end: end.at_ns)
        timing = engine.timing(slowest, validation_s=validation_s)
        total_s = time.monotonic() - began_s
        # TGI's headers tell of the best sequence alone.
        generated = sum(plan.output_tokens for plan in (plans[:1] if best_of else plans))
        if best_of:
            self._completed(total_s, timing, plans[0].output_tokens)
        else:
            for plan, end in zip(plans, ends, strict=True):
                its_timing = engine.timing(end, validation_s=validation_s)
                self._completed(total_s, its_timing, plan.output_tokens)
        return plans, {
            "x-compute-type": COMPUTE_TYPE,
            "x-compute-time": f"{total_s:.9f}",
            "x-compute-characters": str(sum(len(plan.prompt) for plan in plans[:1])),
            "x-total-time": str(int(total_s * 1000)),
            "x-validation-time": str(int(timing.validation_s * 1000)),
            "x-queue-time": str(int(timing.queue_s * 1000)),
            "x-inference-time": str(int(timing.inference_s * 1000)),
            "x-time-per-token": str(int(timing.inference_s / generated * 1000)),
            "x-prompt-tokens": str(plans[0].prompt_tokens),
            "x-generated-tokens": str(generated),
        }

    async def stream(
        self,
        request: web.Request,
        prompts: Sequence[str],
        parameters: Parameters,
        frames: Sequence[sse.Frames],
    ) -> web.StreamResponse:
        """Answer token by token. The 200 goes out before the permit is asked for: that is TGI's trap."""
        engine = self.engine
        began_s = time.monotonic()
        engine.metrics.requests += len(prompts)
        response = web.StreamResponse(
            headers={
                "content-type": "text/event-stream",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
                "x-compute-type": COMPUTE_TYPE,
                "x-compute-characters": str(sum(map(len, prompts))),
            }
        )
        await response.prepare(request)
        try:
            jobs = self._submit(request, prompts, parameters, stream=True)
        except SimError as error:
            await response.write(frames[0].error(error) + frames[0].end())
            return response
        validation_s = time.monotonic() - began_s
        try:
            if len(jobs) == 1:
                await _send(response, jobs[0], frames[0])
            else:
                async with asyncio.TaskGroup() as group:
                    for job, dialect in zip(jobs, frames, strict=True):
                        group.create_task(_send(response, job, dialect))
            if tail := frames[0].end():
                await response.write(tail)
            for job in jobs:
                timing = engine.timing(await job.end(), validation_s=validation_s)
                self._completed(time.monotonic() - began_s, timing, job.plan.output_tokens)
        except* ConnectionResetError:
            pass  # the client left; `finally` lets the work go
        finally:
            for job in jobs:
                engine.abandon(job)
        return response

    def _completed(self, total_s: float, timing: RequestTiming, generated: int) -> None:
        self.engine.metrics.completed(
            total_s=total_s,
            validation_s=timing.validation_s,
            queue_s=timing.queue_s,
            inference_s=timing.inference_s,
            generated_tokens=generated,
        )


async def _send(response: web.StreamResponse, job: EngineJob, frames: sse.Frames) -> None:
    """Write a job's tokens as they come: one write a token, or all that a slow reader has missed."""
    sent = 0
    total = job.plan.output_tokens
    word_id = job.plan.story.word_id
    while sent < total:
        if job.made == sent:
            if job.keep_alive:
                job.keep_alive = False
                await response.write(sse.KEEP_ALIVE)
            else:
                await job.changed()
            continue
        made = job.made
        plain = [frames.token(at + 1, word_id(at)) for at in range(sent, min(made, total - 1))]
        if made == total:
            plain.append(frames.last(total, word_id(total - 1), job.plan))
        await response.write(plain[0] if len(plain) == 1 else b"".join(plain))
        sent = made


def _forced_tokens(request: web.Request) -> int | None:
    """`x-sim-output-tokens`; what is no positive number is a 422, lest a test pass by accident."""
    value = request.headers.get(OUTPUT_TOKENS_HEADER)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise invalid(f"`{OUTPUT_TOKENS_HEADER}` must be a positive number. Given: {value}")
    return int(value)
