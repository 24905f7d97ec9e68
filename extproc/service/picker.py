"""The service as other gateways' picker: what the protocol's streams need of the rest.

Owns the endpoints that joined a pool because a gateway named them, and the heartbeats of followed streams.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from extproc.config.model import Config
from extproc.core.fleet import Fleet
from extproc.core.outcome import Outcome
from extproc.discovery.member import DiscoveredMember
from extproc.service.parts import Part
from extproc.service.roster import REGISTERED_MAX, Roster
from extproc.wire.picker import Picker
from extproc.wire.processor import Processor

log = logging.getLogger(__name__)

#: The name of this source of endpoints.
SOURCE = "picker"
#: How often endpoints that nobody names any more are looked for.
FORGET_EVERY_NS = 1_000_000_000


class PickerPart(Part):
    """Serves the endpoint-picker protocol, if the configuration says so."""

    name = "picker"

    def __init__(
        self,
        config: Config,
        processor: Processor,
        roster: Roster,
        *,
        settle: Callable[[Outcome], None],
        first_token: Callable[[str, bool, str], bool],
        clock: Callable[[], int],
    ) -> None:
        self._roster, self._clock = roster, clock
        self._fleet: Fleet = roster.fleet
        self.picker = Picker(
            processor, config.picker, settle=settle, first_token=first_token, join=self._join
        )
        #: Who joined, by pool: when each was last named.
        self._joined: dict[str, dict[str, int]] = {}
        self._looked_ns = clock()

    def step(self, *, now_ns: int) -> None:
        """Say which requests still run; forget endpoints that are named no more."""
        self.picker.step(now_ns=now_ns)
        if now_ns - self._looked_ns < FORGET_EVERY_NS:
            return
        self._looked_ns = now_ns
        for pool, joined in self._joined.items():
            patience_ns = self.picker.settings.forget_s * 1_000_000_000
            silent = [address for address, named_ns in joined.items() if now_ns - named_ns > patience_ns]
            for address in silent:
                del joined[address]
                log.info("pool %s: %s is forgotten: no gateway named it", pool, address)
            if silent:
                self._tell(pool)

    def apply(self, config: Config) -> None:
        """A new configuration holds for streams from now on."""
        self.picker.settings = config.picker
        pools = {pool.name for pool in config.pools}
        self._joined = {pool: joined for pool, joined in self._joined.items() if pool in pools}

    def status(self) -> dict[str, object]:
        """Streams that carry a response now, bodies in memory, endpoints that joined."""
        return {
            "enabled": self.picker.settings.enabled,
            "following": len(self.picker.following),
            "bodies_bytes": self.picker.bodies_bytes,
            "joined": {pool: sorted(joined) for pool, joined in self._joined.items() if joined},
        }

    def _join(self, model: str, tenant: str, addresses: tuple[str, ...]) -> None:
        pool = self._fleet.pool_for(model, tenant)
        if pool is None or pool.tenants is not None:
            # What a gateway offers to everybody is nobody's own: a reserved pool takes none of it.
            return
        now_ns = self._clock()
        joined = self._joined.setdefault(pool.name, {})
        new = False
        for address in addresses:
            if address in joined:
                joined[address] = now_ns
            elif self._fleet.owner(address) is None and len(joined) < REGISTERED_MAX:
                joined[address] = now_ns
                new = True
                log.info("pool %s: %s joins: a gateway named it", pool.name, address)
        if new:
            self._tell(pool.name)

    def _tell(self, pool: str) -> None:
        self._roster.told(pool, SOURCE, tuple(DiscoveredMember(each) for each in self._joined[pool]))
