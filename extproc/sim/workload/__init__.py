"""Workloads for the discrete-event simulator: public traces, and made-up ones from a seed.

Nothing here needs more than the standard library and msgspec.
"""

from extproc.sim.workload.arrival import Arrival, Workload, WorkloadError, WorkloadStats, lru_hit_share
from extproc.sim.workload.capacity import OperatingPoint, ReplicaShare, capacity, operating
from extproc.sim.workload.conversations import sessions
from extproc.sim.workload.fit import ClientLimits
from extproc.sim.workload.synthetic import (
    Lengths,
    TenantSource,
    bursts,
    long_prompt_mix,
    noisy_neighbour,
    poisson,
)
from extproc.sim.workload.traces import load

__all__ = [
    "Arrival",
    "ClientLimits",
    "Lengths",
    "OperatingPoint",
    "ReplicaShare",
    "TenantSource",
    "Workload",
    "WorkloadError",
    "WorkloadStats",
    "bursts",
    "capacity",
    "load",
    "long_prompt_mix",
    "lru_hit_share",
    "noisy_neighbour",
    "operating",
    "poisson",
    "sessions",
]
