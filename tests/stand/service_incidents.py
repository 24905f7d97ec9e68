"""What goes wrong between services, in the virtual time of services.py: Redis is slow or away, a service dies
and comes back, all of a tenant's connections are at one service.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from extproc.core.outcome import Outcome
from extproc.core.peers import owner_of
from extproc.core.scheduler import Scheduler
from extproc.state.share import OwnLoad, PeerLoads
from tests.stand.services import MS, Client, S, Services

#: How often peers that are silent are looked for (redis_share.py).
EXPIRE_NS = 250 * MS
#: What a client waits before it asks again whose request ended with its service.
AGAIN_NS = 100 * MS


@dataclass(frozen=True, slots=True)
class Incident:
    """Seconds are of the measured part: 0 is the end of the warm-up."""

    #: How long each call to Redis takes.
    redis_ms: int = 0
    #: From when to when nothing comes through Redis.
    away_s: tuple[float, float] | None = None
    #: When the first service dies, and when another life of it begins.
    dies_s: float | None = None
    back_s: float | None = None
    #: Tenants whose connections are all at one service.
    at: dict[str, int] = field(default_factory=dict)


class ServicesInTrouble(Services):
    """Services with an incident; the last of them that are alive serve."""

    def __init__(self, count: int, clients: list[Client], incident: Incident, **more: int) -> None:
        super().__init__(count, clients, **more)  # type: ignore[arg-type]
        self.incident = incident
        self._alive = [True] * count
        self._lives = 1
        for index in range(count):
            self._at(index * EXPIRE_NS // count, self._expire, index)
        # The warm-up is run's own: 10 s.
        if incident.dies_s is not None:
            self._at(int((10.0 + incident.dies_s) * S), self._die)
        if incident.back_s is not None:
            self._at(int((10.0 + incident.back_s) * S), self._begin_again)

    def _chosen(self, client: Client) -> int:
        index = self.incident.at.get(client.tenant)
        if index is not None and self._alive[index]:
            return index
        return self.rng.choice([index for index, alive in enumerate(self._alive) if alive])

    def _reachable(self) -> bool:
        if self.incident.away_s is None:
            return True
        begins, ends = self.incident.away_s
        return not begins <= (self.now_ns - self._warm_ns) / S < ends

    def _tell(self, index: int) -> None:
        if self._alive[index]:
            super()._tell(index)

    def _sent(self, other: int, frame: bytes) -> None:
        if self._reachable():
            self._at(max(MS, self.incident.redis_ms * MS), self._hear, other, frame)

    def _pause_ns(self, index: int) -> int:
        # The next call begins when the one before it has ended.
        return max(super()._pause_ns(index), self.incident.redis_ms * MS)

    def _hear(self, index: int, frame: bytes) -> None:
        if self._alive[index]:
            super()._hear(index, frame)

    def _step(self, index: int, due_ns: int) -> None:
        if self._alive[index]:
            super()._step(index, due_ns)

    def _record(self, scheduler: Scheduler, outcome: Outcome) -> None:
        if scheduler in self.schedulers:
            super()._record(scheduler, outcome)

    def _expire(self, index: int) -> None:
        if self._alive[index] and self.shared:
            self.peers[index].expire(now_ns=self.now_ns)
            if self.peers[index].news:
                self._told(index)
        self._at(EXPIRE_NS, self._expire, index)

    def _die(self) -> None:
        """As by kill -9: who waited there asks again; what runs goes on, and its records reach the others."""
        self._alive[0] = False
        mine = [name for name in self._waiting if owner_of(name) == self.names[0]]
        self.names[0] = f"s0life{self._lives}"
        for name in mine:
            client, asked_ns = self._waiting.pop(name)
            # Its wait goes on where it asks next.
            self._at(AGAIN_NS, self._ask, client, asked_ns)
        self.schedulers[0] = self._scheduler(0)

    def _begin_again(self) -> None:
        self._lives += 1
        name = self.names[0]
        self.own[0], self.peers[0] = OwnLoad(f"{name}-x"), PeerLoads(f"{name}-x")
        self._alive[0] = True
        self._tell(0)
        self._step_at(0, self.schedulers[0].step(now_ns=self.now_ns))
