"""What a KEDA trigger asks of the external scaler: its metadata, read and checked.

Owns the keys. An answer depends on the metadata and not on the ScaledObject's name: several triggers may ask
under one name, and a scaler that has just begun knows nothing of who asked the one before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple, cast

from extproc.core.scaling.reported import TOLERANCE

#: What may be asked for. `wanted`: replicas that are wanted. `held`: requests that wait in the gateway.
#: `forecast`: requests a second that are expected when a replica that begins now is ready.
TriggerMetric = Literal["wanted", "held", "forecast"]
METRICS: Final = ("wanted", "held", "forecast")
#: A target below would be lost in Kubernetes' thousandths.
THRESHOLD_MIN, THRESHOLD_MAX = 0.1, 1e6
TOLERANCE_MAX = 0.5
#: Of a name that somebody sent, in what is answered.
_SHOWN = 63


class TriggerError(ValueError):
    """A trigger's metadata say something that cannot be; the message says the mend."""


class UnknownPoolError(TriggerError):
    """A trigger names a pool that does not scale; the message names those that do."""


class ScalerTrigger(NamedTuple):
    """A trigger's metadata. `threshold`: the target, of one replica; `tolerance`: of its HPA."""

    pool: str
    metric: TriggerMetric = "wanted"
    threshold: float = 1.0
    tolerance: float = TOLERANCE

    @property
    def name(self) -> str:
        """Its metric's name: the same for the same metadata."""
        # Kubernetes wants a name of a URL's path.
        pool = re.sub(r"[^a-z0-9-]+", "-", self.pool.lower()).strip("-")
        return f"steersman-{self.metric}-{pool}"

    @property
    def target_milli(self) -> int:
        """The target in thousandths."""
        return round(self.threshold * 1_000)


def trigger_of(metadata: Mapping[str, str], pools: Collection[str]) -> ScalerTrigger:
    """Read a trigger's metadata; keys that are not ours are passed over. Raises TriggerError."""
    there = ", ".join(sorted(pools)) or "none has `scaling`"
    pool = metadata.get("pool", "")
    if not pool:
        raise TriggerError(f"the trigger's metadata name no pool; write pool: NAME ({there})")
    if pool not in pools:
        raise UnknownPoolError(f"no pool {pool[:_SHOWN]!r} scales here; there are: {there}")
    metric = metadata.get("metric", "wanted")
    if metric not in METRICS:
        raise TriggerError(f"metric {metric[:_SHOWN]!r} is none of {', '.join(METRICS)}")
    if metric != "wanted" and "threshold" not in metadata:
        raise TriggerError(f"metric {metric} needs threshold: how many a replica is good for")
    threshold = _number(metadata, "threshold", 1.0, THRESHOLD_MIN, THRESHOLD_MAX)
    tolerance = _number(metadata, "tolerance", TOLERANCE, 0.0, TOLERANCE_MAX)
    return ScalerTrigger(pool, cast("TriggerMetric", metric), threshold, tolerance)


def _number(metadata: Mapping[str, str], key: str, default: float, least: float, most: float) -> float:
    text = metadata.get(key)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise TriggerError(f"{key} {text[:_SHOWN]!r} is no number from {least:g} to {most:g}")
    return number
