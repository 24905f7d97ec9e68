"""One replica and everything the decider knows of it.

Owns identity, load and readiness. An `Endpoint` is one object for as long as its address is in the
fleet, in whichever pool: what still runs on a replica runs there whatever the pool around it is called
now, so its permits must go along (law: reserve, settle, expire).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from extproc.core.adapters import LoadedAdapters
from extproc.core.cached import CacheEvidence
from extproc.core.health import Health
from extproc.core.latency import Latency
from extproc.core.load import Load
from extproc.core.predict.admission import Admission
from extproc.core.predict.prior import prior
from extproc.core.predict.slots import Slots
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.reports import ReplicaReport

#: The first and the longest time that an endpoint stays last in order after a failed attempt. The first is
#: short: what fails now and then costs its requests a retry of some 10 ms, while without it the others have
#: its work, and its cache is no use (half of all answered 503, simulated: hit .775 with 1 s, .788 with .1 s).
SUSPECT_FIRST_NS, SUSPECT_MAX_NS = 100_000_000, 30_000_000_000
#: For so long after a failed attempt a request goes to an endpoint only with another to be tried on.
FAILED_LATELY_NS = 10_000_000_000
#: Reports over which the smallest surplus counts as foreign: a request that has just ended here may
#: still be in the engine's figures.
FOREIGN_SAMPLES = 3
#: Prompt tokens that an engine computes in one step (TGI's max_batch_prefill_tokens).
PREFILL_BUDGET_TOKENS = 4096
#: Retries may be promised no more of an endpoint's permits than leaves this share (one permit at the least)
#: to those that come anew: what is kept for a failure must not keep an idle replica idle.
STANDBY_FREE_SHARE = 0.5
#: No weight is below this while an endpoint is ready, so that scores stay finite.
WEIGHT_MIN = 0.01


class Member(NamedTuple):
    """A replica as a source of endpoints lists it."""

    address: str
    zone: str = ""
    max_concurrent: int = 128
    region: str = ""
    #: What it runs on, by NVML's name of the card ("" unknown: agents may say), and how many of them.
    hardware: str = ""
    gpus: int = 1
    #: KV tokens that it holds; 0 unknown.
    kv_capacity_tokens: int = 0
    #: What an hour of it costs; 0 unknown. Spot capacity is cheap and may vanish.
    price_per_hour: float = 0.0
    spot: bool = False


class Endpoint:
    """One replica and our books about it.

    `requests`, `permits`, `tokens` are in flight by our own ledger, `peer_…` by the ledgers of services
    beside us, `foreign` are requests that the engine has and no ledger knows. `weight` is 0 to 1, from
    health. `report` is the agent's last word, None while it has said nothing (never seen is not idle).
    """

    __slots__ = (
        "_promised",
        "_surplus",
        "adapters",
        "address",
        "admission",
        "announced",
        "cache",
        "cache_tokens",
        "configured_max_concurrent",
        "draining",
        "failed_ns",
        "failures",
        "foreign",
        "gpus",
        "hardware",
        "health",
        "kv_capacity_tokens",
        "latency",
        "load",
        "max_concurrent",
        "peer_permits",
        "peer_requests",
        "peer_tokens",
        "permits",
        "picked",
        "pool",
        "prefill_budget_tokens",
        "price_per_hour",
        "ready",
        "region",
        "report",
        "reported_ns",
        "requests",
        "slots",
        "smooth",
        "speed",
        "spot",
        "stale",
        "standby",
        "suspect_until_ns",
        "tokens",
        "turn",
        "waiting",
        "weight",
        "zone",
    )

    def __init__(
        self, *, address: str, pool: str, zone: str = "", max_concurrent: int = 128, region: str = ""
    ) -> None:
        self.address = address
        self.pool = pool
        self.zone = zone
        self.region = region
        self.configured_max_concurrent = max_concurrent
        self.max_concurrent = max_concurrent
        self.ready = True
        self.draining = False
        #: Every Envoy knows it: a decision may name it.
        self.announced = True
        self.health = Health()
        self.weight = 1.0
        self.report: ReplicaReport | None = None
        self.reported_ns: int | None = None
        #: Its telemetry is too old to go by (diagnosis.py).
        self.stale = False
        self.requests = 0
        self.permits = 0
        self.tokens = 0
        self.peer_requests = 0
        self.peer_permits = 0
        self.peer_tokens = 0
        self.foreign = 0
        #: Requests that its engine says wait in it, ours and others'; 0 where it does not say.
        self.waiting = 0
        #: Permits kept for retries: what the worst loss of one other endpoint would send here.
        self.standby = 0
        self._promised: dict[str, int] = {}
        self._surplus: list[int] = []
        #: The number of the decision that last chose it: the least recent wins a tie.
        self.picked = 0
        #: Its place in the weighted rotation (round_robin).
        self.turn = 0.0
        self.failures = 0
        #: When an attempt on it failed last; None never.
        self.failed_ns: int | None = None
        self.suspect_until_ns = 0
        self.hardware = ""
        self.gpus = 1
        self.kv_capacity_tokens = 0
        self.price_per_hour = 0.0
        self.spot = False
        self.prefill_budget_tokens = PREFILL_BUDGET_TOKENS
        #: What our own ledger has on it, as prefill, decode and memory.
        self.load = Load()
        #: How fast it is; its fleet gives endpoints of a pool and hardware one model between them.
        self.speed = Speed(SpeedModel(prior()))
        self.admission = Admission(self.speed.model.admission)
        #: How many sequences its engine decodes at once, where that shows.
        self.slots = Slots(self.speed.model.slots)
        #: Prompt tokens that its prefix cache is taken to hold (feedback.py); 0 while nothing was learnt.
        self.cache_tokens = 0
        #: What it says itself of its prefix cache (cached.py).
        self.cache = CacheEvidence()
        #: How long its answers took of late (latency).
        self.latency = Latency()
        #: Which LoRA adapters it has loaded; None where its pool has none.
        self.adapters: LoadedAdapters | None = None
        #: Its place in the smooth rotation (weighted_round_robin).
        self.smooth = 0.0

    def listed(self, member: Member, pool: str) -> None:
        """Take over what a source says of it."""
        self.pool, self.zone, self.region = pool, member.zone, member.region
        self.configured_max_concurrent = member.max_concurrent
        if member.hardware:
            self.hardware = member.hardware
        self.gpus = member.gpus
        self.kv_capacity_tokens = member.kv_capacity_tokens
        self.price_per_hour, self.spot = member.price_per_hour, member.spot
        self._bound()

    @property
    def member(self) -> Member:
        """What a source said of it."""
        return Member(
            self.address,
            self.zone,
            self.configured_max_concurrent,
            self.region,
            self.hardware,
            self.gpus,
            self.kv_capacity_tokens,
            self.price_per_hour,
            self.spot,
        )

    def heard(self, report: ReplicaReport, *, now_ns: int) -> None:
        """Take an agent's report.

        A claim only ever adds to what our ledgers know: an agent that says "idle" attracts nothing.
        """
        self.report, self.reported_ns, self.stale = report, now_ns, False
        self._bound()
        if self.adapters is not None:
            loaded, served = report.loaded_adapters, report.served_adapters
            self.adapters.heard(report.adapters, loaded=loaded, served=served, now_ns=now_ns)
        if report.running is None and report.waiting is None:
            self.forget_foreign()
            return
        self._waits(report.waiting or 0)
        seen = (report.running or 0) + self.waiting
        # An engine counts sequences, as permits do: a request for four is four there.
        surplus = max(0, seen - self.permits - self.peer_permits)
        self._surplus = [*self._surplus[1 - FOREIGN_SAMPLES :], surplus]
        self.foreign = min(self._surplus) if len(self._surplus) == FOREIGN_SAMPLES else 0

    def answers(self, model: str) -> bool:
        """Whether its engine answers for a model: not for an adapter that it is known to lack."""
        return self.adapters is None or self.adapters.answers(model)

    def starts(self, model: str, *, now_ns: int) -> bool:
        """Whether its engine would begin a request for a model now, as far as adapters go."""
        return self.adapters is None or self.adapters.starts(model, now_ns=now_ns)

    def peer_ended(self, permits: int, tokens: int) -> None:
        """A peer's request here is over, and the peer will not put another in its place."""
        self.peer_requests = max(0, self.peer_requests - 1)
        self.peer_permits = max(0, self.peer_permits - permits)
        self.peer_tokens = max(0, self.peer_tokens - tokens)

    def peer_begins(self, permits: int, tokens: int) -> None:
        """A peer will put a request here before we hear of it."""
        self.peer_requests += 1
        self.peer_permits += permits
        self.peer_tokens += tokens

    def forget_foreign(self) -> None:
        """Nobody says any more what else the engine has: our ledgers carry on alone."""
        self.foreign = 0
        self._surplus = []
        self._waits(0)

    def refresh(self) -> None:
        """Derive readiness and weight from health and drain."""
        self.ready = self.announced and not self.draining and self.health.value > 0.0
        self.weight = max(self.health.value, WEIGHT_MIN)

    @property
    def kv_tokens(self) -> int:
        """KV tokens that it holds: as configured, else as its agent says, else 0 for unknown."""
        said = self.report.kv_capacity_tokens if self.report is not None else None
        return self.kv_capacity_tokens or said or 0

    @property
    def load_requests(self) -> int:
        """Requests on it by everybody's account."""
        return self.requests + self.peer_requests + self.foreign

    @property
    def load_permits(self) -> int:
        """Permits taken by everybody's account."""
        return self.permits + self.peer_permits + self.foreign

    def may_stand_by(self, first: str, permits: int) -> bool:
        """Whether it may be named for retries of a request that goes to `first`."""
        standby = max(self.standby, self._promised.get(first, 0) + permits)
        kept = ceil(self.max_concurrent * STANDBY_FREE_SHARE)
        return self.load_permits + standby <= self.max_concurrent - kept

    def stand_by(self, first: str, permits: int) -> None:
        """A request that goes to `first` may be tried here next.

        Its permits count here from now on, so that no retry finds it overfilled. One endpoint is lost at a
        time: of what is promised for different ones the largest sum is kept, not all of them.
        """
        promised = self._promised[first] = self._promised.get(first, 0) + permits
        self.standby = max(self.standby, promised)

    def stand_down(self, first: str, permits: int) -> None:
        """That request will not be tried here any more."""
        before = self._promised.pop(first)
        assert before >= permits, self
        if before > permits:
            self._promised[first] = before - permits
        if before == self.standby:
            self.standby = max(self._promised.values(), default=0)

    def failed(self, now_ns: int, *, refused: bool = False) -> None:
        """An attempt on it failed: last in order for a while, twice as long each time.

        `refused`: inside an answer, where no other could be tried.

        Failures while it is suspect are the same trouble seen by many requests and count once.
        """
        if not refused:
            self.failed_ns = now_ns
        if now_ns < self.suspect_until_ns:
            return
        self.failures += 1
        pause = min(SUSPECT_FIRST_NS << min(self.failures - 1, 16), SUSPECT_MAX_NS)
        self.suspect_until_ns = now_ns + pause

    def failed_lately(self, now_ns: int) -> bool:
        """Whether an attempt on it failed within FAILED_LATELY_NS, whatever it has answered since."""
        return self.failed_ns is not None and now_ns - self.failed_ns < FAILED_LATELY_NS

    def succeeded(self) -> None:
        """It answered: trusted again."""
        self.failures = 0
        self.suspect_until_ns = 0

    def _waits(self, waiting: int) -> None:
        self.waiting = waiting
        self.admission.told(waiting)

    def _bound(self) -> None:
        """The engine's own limit counts where it is the lower: a claim cannot raise the configured one."""
        said = self.report.max_concurrent if self.report else None
        limit = self.configured_max_concurrent
        self.max_concurrent = limit if said is None else max(1, min(limit, said))

    def __repr__(self) -> str:
        return f"Endpoint({self.address}, requests={self.requests}, tokens={self.tokens})"


def places(permits: int, endpoints: Iterable[Endpoint]) -> int:
    """The free permits that a request wants of a replica whose engine queues what is above its limit.

    All engines but TGI do: a batch that none takes at once wants the largest one to itself.
    """
    return min(permits, max((e.max_concurrent for e in endpoints if e.ready), default=permits))
