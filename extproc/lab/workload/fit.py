"""From drawn lengths to arrivals: the limits that clients say, and what fits a replica.

Owns the model of `max_new_tokens` and the token bounds. Pure; knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, NamedTuple

from extproc.sim.arrival import Arrival, Workload, WorkloadError

ARRIVALS_MAX: Final = 2_000_000  # about 1 GB of arrivals without blocks
Oversize = Literal["drop", "clip"]


class Draw(NamedTuple):
    """A request before its client's limit is drawn; the fields are `Arrival`'s."""

    at_ns: int
    tenant: str
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    session: str = ""
    ending: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """What clients say for `max_new_tokens`: no public trace has it, so this is a model of ours.

    A share `unsaid_share` (0..1) says nothing. The others say one of the `reach` smallest of `choices`
    (ascending; powers of two and round numbers, as SDK examples have them) that are not below what the
    model will write, each alike: a limit tells the output's scale, seldom its value. Past the last
    choice it is the next power of two.
    """

    unsaid_share: float = 0.5
    choices: tuple[int, ...] = (16, 32, 64, 100, 128, 200, 256, 500, 512, 1000, 1024, 2000, 2048, 4096, 8192)
    reach: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.unsaid_share <= 1:
            raise WorkloadError(f"unsaid_share must lie in 0..1, not {self.unsaid_share}")
        if self.reach < 1:
            raise WorkloadError(f"reach must be at least 1, not {self.reach}")
        if list(self.choices) != sorted(set(self.choices)) or any(choice < 1 for choice in self.choices):
            raise WorkloadError("choices must ascend and be at least 1")

    def draw(self, chance: Random, output_tokens: int) -> int | None:
        """One client's limit, never below `output_tokens`; two draws of chance whatever the outcome."""
        unsaid = chance.random() < self.unsaid_share
        pick = chance.random()
        if unsaid:
            return None
        near = [choice for choice in self.choices if choice >= output_tokens][: self.reach]
        return near[int(pick * len(near))] if near else 1 << (output_tokens - 1).bit_length()


def assemble(
    name: str,
    draws: Iterable[Draw],
    *,
    seed: int,
    block_tokens: int = 16,
    limit: int | None = None,
    max_total_tokens: int | None = None,
    oversize: Oversize = "drop",
    limits: ClientLimits | None = None,
) -> Workload:
    """The workload of `draws` (time order), at most `limit` arrivals.

    A request whose prompt and output pass `max_total_tokens` is left out ("drop") or loses the prompt's
    end, and only then the output's ("clip"); both are counted. Said limits are cut to what the replica
    would accept beside the prompt. `WorkloadError` past `ARRIVALS_MAX`.
    """
    if oversize not in ("drop", "clip"):
        raise WorkloadError(f"oversize must be drop or clip, not {oversize!r}")
    if max_total_tokens is not None and max_total_tokens < 2:
        raise WorkloadError(f"max_total_tokens must be at least 2, not {max_total_tokens}")
    limits = limits or ClientLimits()
    chance = Random(f"{seed}:client limits")  # its own stream: lengths stay when the model of limits changes
    arrivals: list[Arrival] = []
    tenants: set[str] = set()
    dropped = clipped = 0
    for draw in draws:
        if limit is not None and len(arrivals) >= limit:
            break
        said = limits.draw(chance, draw.output_tokens)
        if max_total_tokens is not None:
            if draw.prompt_tokens + draw.output_tokens > max_total_tokens:
                if oversize == "drop":
                    dropped += 1
                    continue
                clipped += 1
                draw = _clipped(draw, max_total_tokens, block_tokens)
            if said is not None:
                said = min(said, max_total_tokens - draw.prompt_tokens)
        if len(arrivals) >= ARRIVALS_MAX:
            raise WorkloadError(
                f"{name}: more than {ARRIVALS_MAX} arrivals; give a limit or a shorter duration"
            )
        tenants.add(draw.tenant)
        arrivals.append(
            Arrival(
                draw.at_ns,
                draw.tenant,
                draw.prompt_tokens,
                draw.output_tokens,
                said,
                draw.blocks,
                draw.session,
                draw.ending,
            )
        )
    return Workload(name, tuple(arrivals), block_tokens, tuple(sorted(tenants)), dropped, clipped)


def _clipped(draw: Draw, max_total_tokens: int, block_tokens: int) -> Draw:
    output = min(draw.output_tokens, max_total_tokens - 1)
    prompt = min(draw.prompt_tokens, max_total_tokens - output)
    blocks = draw.blocks[: prompt // block_tokens]
    return draw._replace(prompt_tokens=prompt, output_tokens=output, blocks=blocks)
