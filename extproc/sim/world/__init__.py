"""The discrete-event simulation: the project's own decisions over simulated replicas, on a virtual clock."""

from __future__ import annotations

from extproc.sim.world.fleets import FleetError, Group, SimFleet, parse_fleet
from extproc.sim.world.oracle import ORACLE
from extproc.sim.world.run import Result, Setting, run
from extproc.sim.world.world import World, WorldFault

__all__ = [
    "ORACLE",
    "FleetError",
    "Group",
    "Result",
    "Setting",
    "SimFleet",
    "World",
    "WorldFault",
    "parse_fleet",
    "run",
]
