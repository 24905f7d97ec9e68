"""LoRA adapters in a world: what of a prompt is cached for whom, and what engines say of theirs. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from extproc.core.fleet import Pool
from extproc.core.prefix import of_adapter
from extproc.core.reports import ReplicaReport
from extproc.sim.arrival import Arrival
from extproc.sim.lora_replica import LoraReplica
from extproc.sim.replica import SimReplica


def blocks_of(arrival: Arrival) -> tuple[int, ...]:
    """A prompt's blocks as its replica caches them: each adapter's apart."""
    return of_adapter(arrival.blocks, arrival.model) if arrival.model else arrival.blocks


def prefix_for(arrival: Arrival, pool: Pool) -> tuple[int, ...]:
    """The same as a gateway is told of it: one that knows of adapters keeps them apart by itself."""
    return blocks_of(arrival) if pool.adapters is None else arrival.blocks


def with_adapters(report: ReplicaReport, replica: SimReplica, *, whole: bool) -> ReplicaReport:
    """A report with the adapters at work; and with all that are loaded, where engines tell the `whole`."""
    if not isinstance(replica, LoraReplica):
        return report
    of = replica.adapters
    return replace(report, adapters=of.at_work, loaded_adapters=of.loaded if whole else None)
