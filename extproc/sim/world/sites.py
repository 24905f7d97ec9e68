"""Two sites: the worlds of an edge and of its centre, and the link between them.

Owns what a message on the way takes, and what a cut of the link does. Where a request goes is the edge's own
scheduler's choice (core/tiers, core/remote), by what the centre's answers to its questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, Final

from extproc.core.fleet import Member, PoolSpec
from extproc.core.outcome import End, Reservation
from extproc.core.remote.digest import Digest, PoolWord, told
from extproc.core.remote.links import SiteLink
from extproc.core.slo import NO_ROOM
from extproc.core.spill.values import SpillRule
from extproc.sim.arrival import Arrival, Workload
from extproc.sim.events import Finished
from extproc.sim.world.conduct import ORDINARY
from extproc.sim.world.fleets import SimFleet
from extproc.sim.world.flight import SimFlight
from extproc.sim.world.run import MODEL, POOL, Result, Setting, set_up
from extproc.sim.world.way import SiteWay
from extproc.sim.world.world import MS_NS, World

#: The centre as the edge's fleet has it: a pool of one endpoint that takes whatever comes.
CENTRE, CENTRE_ADDRESS = "centre", "10.255.0.1:80"
CENTRE_POOL: Final = PoolSpec(
    name=CENTRE,
    models=(MODEL,),
    strategy="least_request",
    site=CENTRE,
    endpoints=(Member(CENTRE_ADDRESS, max_concurrent=1_000_000),),
)
#: Whose the requests of other sites are.
OTHERS: Final = "other-sites"
#: Of news of a request in the centre: its first token, and the end of one that was answered.
FIRST, OK = "first", "ok"
#: A question that nobody has answered for so long has reached nobody (service/remote.py).
MISSED_NS: Final = 1_500_000_000

#: Told of a request in the centre: FIRST, or how it ended; when; and the prompt's tokens that were cached.
Hears = Callable[[str, int, int], None]


class Link:
    """The way between the sites. A cut that nobody notices delays what is sent; a longer one loses it."""

    def __init__(self, way: SiteWay, workload: Workload, rng: Random) -> None:
        self.way = way
        self._rng = rng
        arrivals = workload.arrivals
        span_ns = arrivals[-1].at_ns - arrivals[0].at_ns
        self.cut_from_ns = arrivals[0].at_ns + round(way.cut_at * span_ns)
        self._cut_until_ns = self.cut_from_ns + round(way.cut_s * 1e9)
        self.notice_ns = round(way.notice_s * 1e9)
        self.noticed = way.cut_s > way.notice_s

    def passes(self, at_ns: int) -> int | None:
        """When what is sent at a time arrives; None for never."""
        way_ns = round(self.way.ms / 2 * (1.0 + self.way.jitter * self._rng.random()) * MS_NS)
        if self.way.cut_s and self.cut_from_ns - way_ns <= at_ns < self._cut_until_ns:
            return None if self.noticed else self._cut_until_ns + way_ns
        return at_ns + way_ns


class CentreWorld(World):
    """The other site: it serves what arrives over the link, and tells who asked."""

    def __init__(self, *parts: Any, **facts: Any) -> None:
        super().__init__(*parts, **facts)
        # The workload is the edge's; what comes here is asked. It ends when the edge does.
        self._arrived = len(self.workload.arrivals)
        self._served = []
        self._left = 1
        self._hears: dict[int, Hears] = {}

    def ask(self, arrival: Arrival, hears: Hears | None) -> None:
        """A request arrives now."""
        flight = SimFlight(len(self._served), replace(arrival, at_ns=self.now_ns))
        self._served.append(None)
        self._left += 1
        if hears is not None:
            self._hears[flight.index] = hears
        self._admit(flight, self._request(flight.arrival), self._tenant(arrival.tenant))

    def others(self, share: float, chance: Random) -> None:
        """Other sites ask too: Poisson, `share` for each of the workload's requests, of like lengths."""
        arrivals = self.workload.arrivals
        if not share:
            return
        at, end_ns = float(arrivals[0].at_ns), arrivals[-1].at_ns
        mean_ns = (end_ns - at) / len(arrivals) / share
        while mean_ns > 0.0 and (at := at + chance.expovariate(1.0) * mean_ns) < end_ns:
            like = replace(chance.choice(arrivals), tenant=OTHERS, blocks=(), session="")
            self._at(round(at), self._other, like)

    def _other(self, arrival: Arrival) -> None:
        self.ask(arrival, None)

    def words(self) -> tuple[PoolWord, ...]:
        """What it offers now."""
        scheduler = self.scheduler
        return told(
            scheduler.fleet,
            scheduler.dispatcher.queue,
            scheduler.policy.price,
            but={},
            now_ns=self.now_ns,
        )

    def _first(self, flight: SimFlight, at_ns: int, cached_tokens: int) -> None:
        super()._first(flight, at_ns, cached_tokens)
        if flight.index in self._hears:
            self._hears[flight.index](FIRST, at_ns, cached_tokens)

    def _end(self, flight: SimFlight, outcome: str, endpoint: str, *, at_ns: int | None = None) -> None:
        super()._end(flight, outcome, endpoint, at_ns=at_ns)
        if flight.index in self._hears:
            self._hears.pop(flight.index)(outcome, self.now_ns if at_ns is None else at_ns, 0)


class EdgeWorld(World):
    """The site that decides. What fails in the centre is tried here, by the decision's list, as by Envoy."""

    def connect(self, centre: CentreWorld, link: Link) -> None:
        """Join it to its centre, before it is run."""
        self._centre, self._link = centre, link
        self._coming[CENTRE_ADDRESS] = 0
        self._conducts[CENTRE_ADDRESS] = ORDINARY
        settings, rule = self.scheduler.settings, link.way.rule
        settings.spills = {POOL: SpillRule(pool=POOL, to=CENTRE, tiers=rule, returns=True)}
        settings.hops_max = rule.hops_max
        self.scheduler.sites.links.put({CENTRE: CENTRE})
        self._ask_digest(None)
        if link.noticed:
            self.happens(link.cut_from_ns + link.notice_ns, self._noticed)

    # -- what the centre offers ------------------------------------------------------------------------------

    def _ask_digest(self, _: None) -> None:
        """A question; its answer is made when it arrives."""
        asked_ns, arrives_ns = self.now_ns, self._link.passes(self.now_ns)
        self._site.asks(now_ns=asked_ns)
        self._at(asked_ns + round(self._link.way.digest_s * 1e9), self._ask_digest, None)
        if arrives_ns is None:
            self._at(asked_ns + MISSED_NS, self._missed, None)
        else:
            self._centre.happens(arrives_ns, lambda: self._answered(asked_ns))

    def _answered(self, asked_ns: int) -> None:
        """The centre's word leaves it now."""
        centre = self._centre
        words = centre.words()
        arrives_ns = self._link.passes(centre.now_ns)
        if arrives_ns is None:
            self._at(asked_ns + MISSED_NS, self._missed, None)
        else:
            late_ns = round(self._link.way.late_ms * MS_NS)
            self._at(arrives_ns + late_ns, self._heard_digest, (asked_ns, words))

    def _heard_digest(self, what: tuple[int, tuple[PoolWord, ...]]) -> None:
        asked_ns, words = what
        digest = Digest(iss=CENTRE, aud=POOL, nonce="", at=0.0, pools=words)
        way_ns = self.now_ns - asked_ns
        self._site.heard(digest, asked_ns=asked_ns, way_ns=way_ns, offset_s=0.0)

    def _missed(self, _: None) -> None:
        self._site.missed("the link is cut")

    @property
    def _site(self) -> SiteLink:
        return self.scheduler.sites.links.by_pool[CENTRE]

    # -- requests on the way ---------------------------------------------------------------------------------

    def _submit(self, reservation: Reservation) -> None:
        flight = self._flights[reservation.id]
        if flight.at != CENTRE_ADDRESS:
            super()._submit(reservation)
            return
        self._coming[flight.at] -= 1
        arrives_ns = self._link.passes(self.now_ns)
        if arrives_ns is None:
            self._at(self.now_ns + self._link.notice_ns, self._broken, reservation)
            return
        before_ns = 0

        def hears(news: str, at_ns: int, cached_tokens: int) -> None:
            nonlocal before_ns
            comes_ns = self._link.passes(at_ns)
            if comes_ns is not None:
                # One stream: nothing overtakes what was sent before it.
                before_ns = max(before_ns, comes_ns, self._centre.now_ns)
                self._at(before_ns, self._news, (reservation, news, cached_tokens))

        arrival = flight.arrival
        self._centre.happens(arrives_ns, lambda: self._centre.ask(arrival, hears))

    def _there(self, reservation: Reservation) -> SimFlight | None:
        """Its flight, while it waits for the centre."""
        flight = self._flights.get(reservation.id)
        return flight if flight is not None and flight.at == CENTRE_ADDRESS else None

    def _news(self, what: tuple[Reservation, str, int]) -> None:
        """Something of an answer is here."""
        reservation, news, cached_tokens = what
        flight = self._there(reservation)
        if flight is None:
            return
        if news == FIRST:
            self._first(flight, self.now_ns, cached_tokens)
            self._at(self.now_ns + self._event_ns(), self._first_token, reservation.id)
        elif news == OK:
            arrival = flight.arrival
            ended = Finished(
                request_id=reservation.id,
                at_ns=self.now_ns,
                prompt_tokens=arrival.prompt_tokens,
                cached_tokens=flight.cached,
                output_tokens=arrival.output_tokens,
                submitted_ns=flight.decided_ns,
                admitted_ns=flight.decided_ns,
                first_token_ns=flight.first_ns,
            )
            self._at(self.now_ns + self._event_ns(), self._finished, ended)
        else:
            self._failed(reservation, status=NO_ROOM)

    def _noticed(self) -> None:
        """The link is cut for some time: what had gone over it by then has no answer."""
        for flight in list(self._flights.values()):
            if flight.at == CENTRE_ADDRESS and flight.decided_ns <= self._link.cut_from_ns:
                assert flight.reservation is not None, flight
                self._broken(flight.reservation)

    def _broken(self, reservation: Reservation) -> None:
        flight = self._there(reservation)
        if flight is None:
            return
        if flight.first_ns < 0:
            self._failed(reservation)
            return
        # Its client has seen a part of the answer.
        del self._flights[reservation.id]
        self._record(flight, reservation, End.ERROR, 0)
        self._end(flight, "failed", flight.at)


def play_sites(workload: Workload, fleet: SimFleet, setting: Setting) -> Result:
    """Play a workload that arrives at the edge of a fleet with two sites."""
    way = fleet.way
    assert way is not None, fleet
    edge = set_up(EdgeWorld, workload, fleet.edge, setting, beside=(CENTRE_POOL,))
    centre = set_up(CentreWorld, workload, fleet.centre, setting)
    centre.others(way.others, Random(f"{setting.seed}/others"))
    edge.connect(centre, Link(way, workload, Random(f"{setting.seed}/way")))
    edge.begin()
    centre.begin()
    while True:
        if centre.next_ns < edge.next_ns:
            centre.turn()
        elif not edge.turn():
            break
    served = edge.finish()
    centre.finish()
    return Result(
        served,
        edge.scheduler,
        {**edge.busy_ns, **centre.busy_ns},
        {**edge.upsets.change_known_s, **centre.upsets.change_known_s},
        dict(edge.scheduler.sites.counts),
    )
