"""The checks, by what they look at. One table of all of them."""

from __future__ import annotations

from typing import Final

from extproc.doctor.checks import agents, backends, config, envoy, machine, redis, routing, service, sites
from extproc.doctor.finding import Check

#: In the order in which a person would look: the file, Envoy, the service, what stands behind.
CHECKS: Final[tuple[Check, ...]] = (
    *config.CHECKS,
    *envoy.CHECKS,
    *routing.CHECKS,
    *service.CHECKS,
    *sites.CHECKS,
    *backends.CHECKS,
    *agents.CHECKS,
    *redis.CHECKS,
    *machine.CHECKS,
)
