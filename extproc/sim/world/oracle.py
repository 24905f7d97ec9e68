"""The oracle: steer's policy with nothing left to guess. The bound to measure a strategy against.

It knows each output's length when the request is placed, each replica's true timing (step noise apart)
and what each replica's cache holds. It is no proof of a best: a bound for policies of this shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from extproc.core.fleet import Pool
from extproc.core.predict.lengths import OutputLengths
from extproc.core.predict.prior import Prior
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.predict.timing import Timing
from extproc.core.prefix import PrefixIndex
from extproc.sim.replica import SimReplica
from extproc.sim.timing import Hardware

#: The strategy's name in reports and on command lines.
ORACLE = "oracle"


class KnownLengths(OutputLengths):
    """Tells the length of the request that is being placed."""

    def __init__(self, asked: Callable[[], int]) -> None:
        super().__init__()
        self._asked = asked

    def expected(self, tenant: str, model: str, limit: int | None) -> float:  # noqa: ARG002 (its base's)
        return float(self._asked())

    def residuals(self, tenant: str, model: str, limit: int | None) -> Sequence[float]:  # noqa: ARG002
        return ()

    def saw(self, tenant: str, model: str, limit: int | None, tokens: int) -> None:
        """There is nothing to learn."""


class KnownPrefixes(PrefixIndex):
    """Reads the replicas' own caches."""

    def __init__(self, replicas: Mapping[str, SimReplica]) -> None:
        super().__init__()
        self._replicas = replicas

    def match(self, prefix: Sequence[int]) -> dict[str, int]:
        found = {address: replica.cache.match(prefix) for address, replica in self._replicas.items()}
        return {address: blocks for address, blocks in found.items() if blocks}


class KnownSpeed(Speed):
    """One replica's true timing; it learns nothing."""

    def saw_first_token(self, predicted_ms: float, observed_ms: float) -> None:
        """There is nothing to learn."""

    def saw_prefill(self, tokens: float, cached: float, observed_ms: float) -> None:
        """There is nothing to learn."""

    def saw_decode(self, batch: float, context_tokens: float, observed_step_ms: float) -> None:
        """There is nothing to learn."""


def true_timing(hardware: Hardware, slowdown: float) -> Timing:
    """What the predictor would know at best; a prefill table is read at 256 and 2,048 tokens."""
    known, overhead_ms = hardware.timing, hardware.overhead_ms
    base = known.prefill_base_ms + overhead_ms
    per_token = known.prefill_per_token_ms
    if hardware.prefill_table:
        low, high = 256, 2048
        per_token = (hardware.prefill_ms(high) - hardware.prefill_ms(low)) / (high - low)
        base = max(0.0, hardware.prefill_ms(low) - per_token * low)
    return replace(
        known,
        decode_base_ms=known.decode_base_ms + overhead_ms,
        prefill_base_ms=base,
        prefill_per_token_ms=per_token,
    ).scaled(decode=slowdown, prefill=slowdown)


def enlighten(
    pool: Pool,
    replicas: Mapping[str, SimReplica],
    *,
    asked: Callable[[], int],
    prefix_caching: bool,
) -> None:
    """Give a pool the truth instead of what would be learnt."""
    pool.lengths = KnownLengths(asked)
    if prefix_caching:
        pool.prefixes = KnownPrefixes(replicas)
    for endpoint in pool.endpoints:
        replica = replicas[endpoint.address]
        timing = true_timing(replica.hardware, replica.slowdown)
        endpoint.speed = KnownSpeed(SpeedModel(Prior(timing, endpoint.kv_tokens, known=True)))
