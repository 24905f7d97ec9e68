"""Workloads for the discrete-event simulator: public traces, and made-up ones from a seed.

Nothing here needs more than the standard library and msgspec.
"""

from extproc.lab.workload.conversations import sessions
from extproc.lab.workload.fit import ClientLimits
from extproc.lab.workload.synthetic import (
    Lengths,
    TenantSource,
    bursts,
    long_prompt_mix,
    noisy_neighbour,
    poisson,
)
from extproc.lab.workload.traces import load
from extproc.sim.arrival import Arrival, Workload, WorkloadError, WorkloadStats, lru_hit_share
from extproc.sim.capacity import OperatingPoint, ReplicaShare, capacity, operating

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
