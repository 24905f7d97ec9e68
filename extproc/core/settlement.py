"""Settlement: what comes back of a request is taken into the books, once: first token, heartbeat, end.

Owns what a record is worth: its counts judged, its charge, what it teaches. Whose place it frees is the
dispatcher's.
"""

from __future__ import annotations

from collections import Counter

from extproc.core.accounts import used
from extproc.core.dispatch import Dispatcher
from extproc.core.events import EventEmitter, Settled
from extproc.core.experiment import Experiments
from extproc.core.feedback import Feedback, coming, moved
from extproc.core.fleet import Fleet
from extproc.core.ledger import InFlight, Ledger
from extproc.core.meter import metered
from extproc.core.outcome import End, Outcome, Reservation
from extproc.core.peers import Peers
from extproc.core.policy import SchedulerSettings
from extproc.core.quota import Amounts, QuotaBooks
from extproc.core.slo import sample_of
from extproc.core.strategies import Work


class Settlement:
    """Takes into one service's books what is heard of requests."""

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        quotas: QuotaBooks,
        settings: SchedulerSettings,
        dispatcher: Dispatcher,
        *,
        peers: Peers,
        experiments: Experiments,
        events: EventEmitter,
        counts: Counter[str],
    ) -> None:
        self._fleet, self._ledger, self._quotas, self._dispatcher = fleet, ledger, quotas, dispatcher
        self._settings, self._peers, self._experiments = settings, peers, experiments
        self._events, self._counts = events, counts
        #: What has ended, and first tokens, teach.
        self.feedback = Feedback(fleet)

    def first_token(
        self, reservation_id: str, *, now_ns: int, refused: bool = False, served_by: str = ""
    ) -> bool:
        """The first chunk of a stream was seen; true when the request is one that we placed.

        `refused`: it says inside a 200 that the engine is overloaded. Its place is no better known than
        before, but the endpoint is suspect, and the request's end will come in its record. `served_by` is who
        answers, where Envoy says it: after a retry another than it was given to.
        """
        entry = self._ledger.get(reservation_id)
        if entry is None:
            return False
        if served_by:
            self._moved(entry, served_by, now_ns)
        if refused:
            self._counts["refused_in_stream"] += 1
            entry.endpoint.failed(now_ns, refused=True)
        else:
            self._ledger.answering(reservation_id)
            news = self._ledger.first_token(reservation_id, now_ns=now_ns) is not None
            silent = entry.job.silent
            waited = self.feedback.slot(entry, now_ns=now_ns)
            if silent and not news and not self._loads_adapters(entry):
                # It was overdue, and counted as running since: how late it was is known now, not at its end.
                self.feedback.first_token(entry, now_ns=now_ns, waited=waited)
            if news:
                self._counts["first_token"] += 1
                entry.heard_first = True
                self.feedback.first_token(entry, now_ns=now_ns, waited=waited)
                self._dispatcher.pump(entry.reservation.pool, now_ns=now_ns, at=entry.endpoint)
        self._events.first_token(reservation_id, refused=refused, now_ns=now_ns)
        return True

    def _loads_adapters(self, entry: InFlight) -> bool:
        """Whether it may have waited for an adapter's load, which says nothing of a speed."""
        pool = self._fleet.pools.get(entry.reservation.pool)
        return pool is not None and pool.adapters is not None

    def settle(self, outcome: Outcome, *, now_ns: int) -> bool:
        """Take a record into the books; true when it ended a request for the first time.

        A heartbeat renews the reservation, or adopts one that another process made: after a restart
        the ledger knows of the streams that outlived its predecessor.
        """
        reservation = outcome.reservation
        pool = self._fleet.pools.get(reservation.pool)
        outcome = metered(outcome, pool.calibration.meters if pool is not None else None)
        if not outcome.final:
            self._heartbeat(outcome, now_ns)
            self._quotas.renew(reservation.id, now_ns=now_ns, so_far=self._so_far(outcome))
            return False
        carrier = self._ledger.endpoint_of(reservation.id)
        # Requests that shared the replica, this one included.
        neighbours = max(1, carrier.load_requests) if carrier is not None else 1
        ended = self._ledger.first_end(reservation.id, now_ns=now_ns)
        if ended is None:
            self._counts["settled.duplicate"] += 1
            return False
        self._counts[f"settled.{outcome.end.value}"] += 1
        self._count_metered(outcome)
        self.feedback.judge(outcome, now_ns=now_ns)
        charged = self._charge(outcome, neighbours, now_ns)
        self.feedback.ended(outcome, ended, now_ns=now_ns)
        policy = self._settings.policy
        sample = sample_of(outcome, policy.classes[policy.rank(reservation.service_class)])
        if reservation.arm:
            self._experiments.ended(outcome, sample, now_ns=now_ns)
        mine, at = self._peers.freed(outcome, ended.entry.endpoint if ended.entry else None)
        if mine:
            self._dispatcher.pump(reservation.pool, now_ns=now_ns, at=at)
            self._peers.spent(reservation.pool)
        if outcome.failed_there:
            self._counts["settled.at_home_after_all"] += 1
            self._dispatcher.pump(reservation.spilled_from, now_ns=now_ns, at=at)
        if outcome.failed_home:
            self._counts["settled.elsewhere_after_all"] += 1
            self._dispatcher.pump(reservation.then, now_ns=now_ns, at=at)
        here = self._peers.ours(reservation.id)
        self._events.settled(Settled(outcome, charged, sample, here), now_ns=now_ns)
        return True

    def expire(self, *, now_ns: int) -> list[Reservation]:
        """Release what nobody has heard of for its time to live; what waits here is heard of."""
        expired = self._ledger.expire(now_ns=now_ns)
        self._dispatcher.renew(now_ns=now_ns)
        self._quotas.expire(now_ns=now_ns)
        for reservation in expired:
            self._counts["expired"] += 1
            self._events.expired(reservation, now_ns=now_ns)
        return expired

    def _heartbeat(self, outcome: Outcome, now_ns: int) -> None:
        reservation, ledger = outcome.reservation, self._ledger
        serving = self._fleet.endpoint(reservation.pool, outcome.served_by or reservation.address)
        if ledger.renew(reservation.id, now_ns=now_ns):
            entry = ledger.get(reservation.id)
            # Between two attempts nobody serves it: the load stays where it was.
            if entry is not None and outcome.served_by:
                self._moved(entry, outcome.served_by, now_ns)
        elif (
            serving is not None
            and not ledger.ended(reservation.id)
            and not self._peers.made(reservation.id)
            and len(ledger) < self._settings.limits.reservations_max
        ):
            ledger.enter(reservation, serving, now_ns=now_ns)
            self._counts["adopted"] += 1

    def _moved(self, entry: InFlight, served_by: str, now_ns: int) -> None:
        """Another endpoint answers than the one that it is entered on, if so: its load goes along."""
        reservation = entry.reservation
        serving = self._fleet.endpoint(reservation.pool, served_by)
        if serving is None and reservation.spilled_from:
            # What failed in another pool was tried at home.
            serving = self._fleet.endpoint(reservation.spilled_from, served_by)
        elif serving is None and reservation.then:
            serving = self._fleet.endpoint(reservation.then, served_by)
        if serving is None or serving is entry.endpoint:
            return
        moved(entry, entry.endpoint)
        self._ledger.move(reservation.id, serving, now_ns=now_ns)
        self._counts["moved"] += 1
        pool = self._fleet.pools.get(serving.pool)
        if pool is not None:
            coming(pool, serving, entry.job.plan)

    def _so_far(self, outcome: Outcome) -> Amounts | None:
        """What a running request has used; None where nothing of it was seen."""
        if not outcome.output_tokens:
            return None
        name = outcome.reservation.pool
        return used(outcome, self._fleet.pools.get(name), self._settings.policy.price(name), gpu_ms=None)

    def _charge(self, outcome: Outcome, neighbours: int, now_ns: int) -> Amounts:
        reservation, policy = outcome.reservation, self._settings.policy
        # By whoever has served it.
        name = outcome.served_in
        pool = self._fleet.pools.get(name)
        gpu_ms = outcome.duration_ns / 1e6 / neighbours if outcome.duration_ns else None
        amounts = used(outcome, pool, policy.price(name), gpu_ms=gpu_ms)
        account = policy.accounts.of(reservation.tenant, reservation.key, reservation.model)
        # The site that has sent it on charges its tenant.
        if account.scopes and not reservation.site:
            self._quotas.settle(reservation.id, amounts, now_ns=now_ns, account=account)
        if not reservation.permits:
            return amounts
        if pool is not None and gpu_ms is not None and outcome.end is End.OK:
            pool.calibration.saw_gpu(gpu_ms, amounts.input_tokens, amounts.output_tokens)
        actual = Work(amounts.input_tokens, amounts.output_tokens)
        if self._peers.ours(reservation.id):
            self._dispatcher.correct(reservation, actual)
        elif self._peers.made(reservation.id) and pool is not None:
            # Charged in another service's queue: there is nothing to correct in ours, but its tenant had it.
            self._dispatcher.charge(
                reservation.tenant, reservation.service_class, pool=reservation.pool, work=actual
            )
        return amounts

    def _count_metered(self, outcome: Outcome) -> None:
        if outcome.impossible:
            self._counts["metered.impossible"] += 1
        if outcome.output_tokens is not None and outcome.reservation.permits:
            self._counts[f"metered.{outcome.counted.value}"] += 1
