"""The desk: decides, keeps the books, and settles. What the server, the tests and the simulator run.

Owns the one order of things: decide → enter the reservation → settle from the record, or expire.
No I/O; its caller brings time and chance.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from extproc.core.decide import decide
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.outcome import End, Outcome, Reject, Reservation, Routed
from extproc.core.request import Request
from extproc.core.tenant import Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskLimits:
    """The desk's named bounds (config: limits)."""

    reservation_ttl_ns: int = 60 * 1_000_000_000
    reservations_max: int = 100_000
    settled_remembered_max: int = 65_536


class Desk:
    """Fleet and ledger under one roof.

    `instance` is unique to this process's life: reservation ids are `instance-number`, so a
    restarted service cannot take its predecessor's records for its own.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        instance: str,
        default_model: str,
        limits: DeskLimits,
        rng: Random,
        zone: str = "",
    ) -> None:
        self.fleet = fleet
        self.ledger = Ledger(ttl_ns=limits.reservation_ttl_ns, remembered_max=limits.settled_remembered_max)
        self.instance = instance
        self.default_model = default_model
        #: Where we are; endpoints elsewhere carry their pool's handicap.
        self.zone = zone
        #: Instances whose in-flight work is known by sharing, and so is not adopted from heartbeats.
        self.peers: frozenset[str] = frozenset()
        self.limits = limits
        self.counts: Counter[str] = Counter()
        self._rng = rng
        self._number = 0

    def admit(self, request: Request, tenant: Tenant, *, now_ns: int, degraded: str = "") -> Routed | Reject:
        """Decide and enter the reservation."""
        self._number += 1
        decision = decide(
            request,
            tenant,
            self.fleet,
            self.ledger,
            id=f"{self.instance}-{self._number}",
            default_model=self.default_model,
            reservations_max=self.limits.reservations_max,
            now_ns=now_ns,
            rng=self._rng,
            zone=self.zone,
            degraded=degraded,
        )
        if isinstance(decision, Reject):
            self.counts[f"rejected.{decision.code}"] += 1
            return decision
        reservation = decision.reservation
        endpoint = self.fleet.endpoint(reservation.pool, reservation.address)
        assert endpoint is not None, reservation.address
        pool = self.fleet.pools[reservation.pool]
        endpoint.picked = self._number
        pool.turn = max(pool.turn, endpoint.turn)
        endpoint.turn = pool.turn + 1.0 / endpoint.weight
        self.ledger.enter(reservation, endpoint, now_ns=now_ns)
        self.counts["routed.degraded" if degraded else "routed"] += 1
        return decision

    def cancel(self, reservation_id: str) -> None:
        """The client left before the decision reached Envoy."""
        if self.ledger.cancel(reservation_id) is not None:
            self.counts["cancelled"] += 1

    def settle(self, outcome: Outcome, *, now_ns: int) -> bool:
        """Take a record into the books; true when it ended a request for the first time.

        A heartbeat renews the reservation, or adopts one that another process made: after a restart
        the ledger knows of the streams that outlived its predecessor.
        """
        reservation = outcome.reservation
        if not outcome.final:
            self._heartbeat(outcome, now_ns)
            return False
        if not self.ledger.first_end(reservation.id):
            self.counts["settled.duplicate"] += 1
            return False
        self.counts[f"settled.{outcome.end.value}"] += 1
        self._judge(outcome, now_ns)
        self._learn(outcome)
        return True

    def expire(self, *, now_ns: int) -> list[Reservation]:
        """Release what nobody has heard of for the reservation's time to live."""
        expired = self.ledger.expire(now_ns=now_ns)
        if expired:
            self.counts["expired"] += len(expired)
        return expired

    def _heartbeat(self, outcome: Outcome, now_ns: int) -> None:
        reservation = outcome.reservation
        serving = self.fleet.endpoint(reservation.pool, outcome.served_by or reservation.address)
        if self.ledger.renew(reservation.id, now_ns=now_ns):
            # Between two attempts nobody serves it: the load stays where it was.
            moved = outcome.served_by and self.ledger.endpoint_of(reservation.id) is not serving
            if serving is not None and moved:
                self.ledger.move(reservation.id, serving)
                self.counts["moved"] += 1
        elif (
            serving is not None
            and not self.ledger.ended(reservation.id)
            and reservation.id.partition("-")[0] not in self.peers
            and len(self.ledger) < self.limits.reservations_max
        ):
            self.ledger.enter(reservation, serving, now_ns=now_ns)
            self.counts["adopted"] += 1

    def _judge(self, outcome: Outcome, now_ns: int) -> None:
        """Passive health: who answered is trusted, who made Envoy go elsewhere is suspect."""
        pool, chosen = outcome.reservation.pool, outcome.reservation.address
        served = self.fleet.endpoint(pool, outcome.served_by)
        first = self.fleet.endpoint(pool, chosen)
        if served is not None and outcome.end in (End.OK, End.REFUSED):
            served.succeeded()
            self.fleet.answered(served, outcome, now_ns=now_ns, failed=False)
        retried_elsewhere = outcome.attempts > 1 and outcome.served_by != chosen
        failed_here = outcome.end is End.ERROR and outcome.served_by in ("", chosen)
        if first is not None and (retried_elsewhere or failed_here):
            first.failed(now_ns)
            self.fleet.answered(first, outcome, now_ns=now_ns, failed=True)

    def _learn(self, outcome: Outcome) -> None:
        """Only whole answers teach: a cut stream's length says nothing of what it would have been."""
        reservation = outcome.reservation
        pool = self.fleet.pools.get(reservation.pool)
        if pool is None or outcome.end is not End.OK or reservation.permits == 0:
            return
        if outcome.prompt_tokens is not None:
            pool.calibration.saw_prompt(reservation.prompt_bytes, outcome.prompt_tokens)
        if outcome.output_tokens is not None:
            pool.calibration.saw_output(outcome.output_tokens // max(1, reservation.permits))
