"""Conversations whose prompts grow and share prefixes, from tenants with long system prompts.

Owns the model of turns and of block identity. Plain `random.Random`.

A prompt is its tenant's system prompt, then every turn so far (question and answer), then the new
question. Full blocks inside the system prompt are the tenant's; the block that straddles its end and
all behind it are the conversation's own, which only ever grows: so equal ids are equal prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Final

from extproc.lab.workload.fit import ClientLimits, Draw, assemble
from extproc.lab.workload.synthetic import (
    CHAT_OUTPUTS,
    DURATION_S,
    MAX_TOTAL_TOKENS,
    Lengths,
    poisson_times,
    zipf_weights,
)
from extproc.sim.arrival import NS_PER_S, Workload, WorkloadError

SYSTEM_PROMPTS: Final = Lengths(1500, 0.5, 256, 4000)
QUESTIONS: Final = Lengths(60, 0.8, 4, 1000)
ANSWER_MS_PER_TOKEN: Final = 30.0  # what a user waits for before thinking of the next question
TURNS_MAX: Final = 100
_WARM_UP: Final = 4.0  # mean conversation lengths before the start, so that it begins in full swing


def sessions(
    requests_per_s: float,
    *,
    seed: int,
    duration_s: float = DURATION_S,
    tenants: int = 48,
    zipf: float = 1.0,
    system_prompts: Lengths = SYSTEM_PROMPTS,
    questions: Lengths = QUESTIONS,
    outputs: Lengths = CHAT_OUTPUTS,
    turns_mean: float = 4.0,
    think_s: float = 20.0,
    block_tokens: int = 16,
    max_total_tokens: int = MAX_TOTAL_TOKENS,
    limit: int | None = None,
    limits: ClientLimits | None = None,
) -> Workload:
    """Conversations of a geometric number of turns (mean `turns_mean`, at most `TURNS_MAX`).

    Conversations begin as a Poisson process, each for a tenant by Zipf's law; `requests_per_s` is the
    mean of turns. The next question comes an exponential `think_s` after the answer, at
    `ANSWER_MS_PER_TOKEN`: an open loop, so that a slow strategy sees the same arrivals as a fast one. A
    conversation also ends where the next turn would pass `max_total_tokens`. With `turns_mean` 1 this
    is the table "Measured by us" of our notes: single requests behind long shared prefixes.
    """
    if not (requests_per_s > 0 and duration_s > 0 and turns_mean >= 1 and think_s >= 0 and block_tokens > 0):
        raise WorkloadError("sessions need rate, duration, block_tokens > 0, turns_mean ≥ 1 and think_s ≥ 0")
    chance = Random(f"{seed}:conversations")
    system = [system_prompts.draw(chance) for _ in range(tenants)]
    weights = zipf_weights(tenants, exponent=zipf)
    ids = count(sum(tokens // block_tokens for tokens in system))
    shared: list[tuple[int, ...]] = []
    begin = 0
    for tokens in system:
        shared.append(tuple(range(begin, begin + tokens // block_tokens)))
        begin += tokens // block_tokens
    turn_s = think_s + outputs.median * ANSWER_MS_PER_TOKEN / 1000
    warm_s = _WARM_UP * (turns_mean - 1) * turn_s
    draws: list[Draw] = []
    starts = poisson_times(chance, requests_per_s / turns_mean, warm_s + duration_s)
    for number, start_s in enumerate(starts):
        tenant = chance.choices(range(tenants), weights)[0]
        own = Random(f"{seed}:conversation {number}")  # its own: one conversation's length moves no other
        turns = _turns(
            own,
            at_s=start_s - warm_s,
            tenant=f"tenant-{tenant:02d}",
            session=f"s{number}",
            system_tokens=system[tenant],
            system_blocks=shared[tenant],
            ids=ids,
            questions=questions,
            outputs=outputs,
            more=1 - 1 / turns_mean,
            think_s=think_s,
            block_tokens=block_tokens,
            max_total_tokens=max_total_tokens,
        )
        draws += [draw for draw in turns if 0 <= draw.at_ns < duration_s * NS_PER_S]
    draws.sort()
    return assemble(
        "sessions",
        draws,
        seed=seed,
        block_tokens=block_tokens,
        limit=limit,
        max_total_tokens=max_total_tokens,
        limits=limits,
    )


def _turns(
    chance: Random,
    *,
    at_s: float,
    tenant: str,
    session: str,
    system_tokens: int,
    system_blocks: tuple[int, ...],
    ids: Iterator[int],
    questions: Lengths,
    outputs: Lengths,
    more: float,
    think_s: float,
    block_tokens: int,
    max_total_tokens: int,
) -> Iterator[Draw]:
    """One conversation's requests; `more` is the chance of another turn."""
    context = system_tokens
    blocks = list(system_blocks)
    for _ in range(TURNS_MAX):
        prompt = context + questions.draw(chance)
        output = outputs.draw(chance)
        if prompt + output > max_total_tokens:
            return
        while len(blocks) < prompt // block_tokens:
            blocks.append(next(ids))
        yield Draw(round(at_s * NS_PER_S), tenant, prompt, output, tuple(blocks), session)
        if chance.random() >= more:
            return
        context = prompt + output
        think = chance.expovariate(1 / think_s) if think_s else 0.0
        at_s += output * ANSWER_MS_PER_TOKEN / 1000 + think
