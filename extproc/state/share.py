"""Loads of several services: what of ours to tell, and what the others' come to.

Owns the change detection, the sequences, the sums and who is alive. No I/O and no clock: the shell
(redis_share.py) brings bytes and `now_ns`. Peers are trusted to be services of ours (Redis let them in)
but not to be sane: what they say is bounded, and nothing that they say makes a sum negative.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from extproc.core.absence import Absence
from extproc.core.turns import TurnRow
from extproc.state import messages
from extproc.state.messages import (
    ENDPOINTS_MAX,
    NO_LOAD,
    Bye,
    Delta,
    FullLoads,
    Hello,
    Key,
    Load,
    MalformedError,
    Reports,
)

#: A full load is told at least this often: the heartbeat, and the cure of whatever was missed.
REFRESH_NS = 1_000_000_000
#: While somebody waits changes are told at least this often, whatever the interval: turns are given by them.
URGENT_NS = 25_000_000
#: A peer that has said nothing for this long is gone and its load with it.
PEER_SILENT_NS = 3_000_000_000
#: Where somebody waits a peer tells it each `URGENT_NS`. Who has said nothing for so long fills no places:
#: nobody keeps them for it until it is gone. Calls to Redis may take half of that.
NEEDS_SILENT_NS = 500_000_000
#: Of one pool in one message no more are believed: what is said is bounded.
REFUSED_AT_ONCE_MAX = 100_000
#: Peers beside us; further ones are counted and not heard.
PEERS_MAX = 64
#: Endpoints of all peers together; what would go above it is refused.
ENTRIES_MAX = 200_000
#: The last sequence of a peer that has gone is kept, so that an old message cannot bring it back.
GONE_MAX, GONE_NS = 1_024, 60_000_000_000


class Publication(NamedTuple):
    """A frame to publish; a full one is also what a new service wants to find."""

    frame: bytes
    full: bool


class OwnLoad:
    """What this service has in flight, and what of it the others know."""

    def __init__(self, service_id: str, *, interval_ns: int = 100_000_000) -> None:
        assert messages.is_sender(service_id), service_id
        self.service_id = service_id
        self.interval_ns = interval_ns
        #: Before this there is nothing to ask `next` for.
        self.due_ns = 0
        self._sequence = 0
        self._told: dict[Key, Load] = {}
        self._needs_told: messages.Needs = {}
        self._refused_told: dict[str, int] = {}
        self._full_wanted = True
        self._full_ns = 0

    def want_full(self) -> None:
        """Tell everything next time: a peer asked, or what we said last may not have arrived."""
        self._full_wanted = True

    def next(
        self,
        loads: Mapping[Key, Load],
        *,
        now_ns: int,
        needs: Mapping[str, Iterable[TurnRow]] | None = None,
        refused: Mapping[str, int] | None = None,
    ) -> Publication | None:
        """What to publish now; None when it is too early or there is nothing new.

        At most one an `interval_ns`; a full one when it is wanted or `REFRESH_NS` have passed.
        """
        if now_ns < self.due_ns:
            return None
        self.due_ns = now_ns + (min(self.interval_ns, URGENT_NS) if needs else self.interval_ns)
        now = {key: load for key, load in loads.items() if load != NO_LOAD}
        if len(now) > ENDPOINTS_MAX:
            now = dict(list(now.items())[:ENDPOINTS_MAX])
        told, self._told = self._told, now
        changed = [(key, load) for key, load in now.items() if told.get(key) != load]
        changed += [(key, NO_LOAD) for key in told.keys() - now.keys()]
        asked = messages.needs_by_pool(needs or {})
        needs_told, self._needs_told = self._needs_told, asked
        lost = dict(islice((refused or {}).items(), messages.REFUSED_POOLS_MAX))
        refused_told, self._refused_told = self._refused_told, lost
        refresh = self._full_wanted or now_ns - self._full_ns >= REFRESH_NS
        if refresh or len(changed) > ENDPOINTS_MAX:
            self._full_wanted = False
            self._full_ns = now_ns
            whole = messages.by_pool(now.items())
            return self._publication(FullLoads(self._next_sequence(), whole, asked, lost))
        if not changed and asked == needs_told and lost == refused_told:
            return None
        return self._publication(Delta(self._next_sequence(), messages.by_pool(changed), asked, lost))

    def hello(self) -> bytes:
        """The frame that asks the others for everything."""
        return messages.encode(self.service_id, Hello())

    def bye(self) -> bytes:
        """The last frame of this service."""
        return messages.encode(self.service_id, Bye(self._next_sequence()))

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _publication(self, message: FullLoads | Delta) -> Publication:
        return Publication(messages.encode(self.service_id, message), isinstance(message, FullLoads))


class _Peer:
    __slots__ = ("heard_ns", "loads", "needs", "refused", "sequence")

    def __init__(self, heard_ns: int) -> None:
        self.heard_ns = heard_ns
        self.sequence = 0
        self.loads: dict[Key, Load] = {}
        self.needs: dict[str, list[TurnRow]] = {}
        #: What it has refused since it began, by pool; None until it said so once.
        self.refused: dict[str, int] | None = None

    @property
    def waits(self) -> bool:
        """Whether somebody waits there, by its last word."""
        return any(row.held for rows in self.needs.values() for row in rows)


class PeerLoads:
    """What all live peers together have in flight, by endpoint; work per message is what it changes."""

    def __init__(self, service_id: str, *, counts: Counter[str] | None = None) -> None:
        self.service_id = service_id
        self.counts: Counter[str] = Counter() if counts is None else counts
        #: Endpoints whose sums are different since `told` was last called.
        self.changed: set[Key] = set()
        #: Something was missed: the others should be asked for everything.
        self.wants_full = False
        self._membership_changed = False
        self._refused: Counter[str] = Counter()
        self._peers: dict[str, _Peer] = {}
        self._gone: OrderedDict[str, tuple[int, int]] = OrderedDict()
        #: Times when we did not listen.
        self.absence = Absence()
        self._sums: dict[Key, Load] = {}
        self._entries = 0

    @property
    def deciders(self) -> int:
        """How many services decide: the live peers and this one."""
        return len(self._peers) + 1

    @property
    def names(self) -> list[str]:
        """The live peers' ids, sorted."""
        return sorted(self._peers)

    @property
    def needs(self) -> dict[str, dict[str, list[TurnRow]]]:
        """What waits and runs at each live peer, by its service's id (without what its connection added)."""
        return {name.partition("-")[0]: peer.needs for name, peer in self._peers.items()}

    def refused(self) -> dict[str, int]:
        """Requests that peers refused for want of room since this was asked last, by pool."""
        taken, self._refused = self._refused, Counter()
        return dict(taken)

    @property
    def sums(self) -> Mapping[Key, Load]:
        """(requests, permits, tokens) of all live peers by (pool, address); nothing is left out but zeros."""
        return MappingProxyType(self._sums)

    def load(self, pool: str, address: str) -> Load:
        """What the live peers have on one endpoint."""
        return self._sums.get((pool, address), NO_LOAD)

    @property
    def news(self) -> bool:
        """Whether a sum or the number of deciders is different since `told`, or a peer refused somebody."""
        return self._membership_changed or bool(self.changed) or bool(self._refused)

    def told(self) -> None:
        """Whoever needed the changes has them."""
        self.changed.clear()
        self._membership_changed = False

    def take(self, frame: bytes, *, now_ns: int, age_ns: int = 0) -> Reports | Hello | None:
        """Take one frame, said `age_ns` ago; returns what is for the shell to act on.

        A frame that is not believed changes nothing but the counts.
        """
        try:
            sender, message = messages.decode(frame)
        except MalformedError as error:
            self.counts[f"rejected_{error}"] += 1
            return None
        if sender == self.service_id:
            return None
        match message:
            case Reports() | Hello():
                return message
            case Bye(sequence=sequence):
                if sequence > self._last_sequence(sender):
                    self._forget(sender, sequence, now_ns)
            case FullLoads():
                self._take_full(sender, message, now_ns, now_ns - age_ns)
            case Delta():
                self._take_delta(sender, message, now_ns)
        return None

    def expire(self, *, now_ns: int) -> list[str]:
        """Forget every peer not heard of for `PEER_SILENT_NS` while we listened; returns their ids.

        Before that what it needs is forgotten, after `NEEDS_SILENT_NS`, where somebody waited there.
        """
        as_of_ns = self.absence.as_of_ns(now_ns=now_ns)
        for peer in self._peers.values():
            if as_of_ns - peer.heard_ns >= NEEDS_SILENT_NS and peer.waits:
                peer.needs = {}
                self._membership_changed = True
        silent = [name for name, peer in self._peers.items() if as_of_ns - peer.heard_ns >= PEER_SILENT_NS]
        for name in silent:
            self._forget(name, self._peers[name].sequence, now_ns)
            self.counts["peers_expired"] += 1
        while self._gone:
            name, (_, gone_ns) = next(iter(self._gone.items()))
            if now_ns - gone_ns < GONE_NS and len(self._gone) <= GONE_MAX:
                break
            del self._gone[name]
        return silent

    def _last_sequence(self, sender: str) -> int:
        peer = self._peers.get(sender)
        return peer.sequence if peer is not None else self._gone.get(sender, (0, 0))[0]

    def _take_full(self, sender: str, message: FullLoads, now_ns: int, heard_ns: int) -> None:
        if message.sequence <= self._last_sequence(sender) or now_ns - heard_ns >= PEER_SILENT_NS:
            self.counts["ignored_old"] += 1
            return
        peer = self._peers.get(sender)
        if peer is None and len(self._peers) >= PEERS_MAX:
            self.counts["rejected_too_many_peers"] += 1
            return
        loads = {
            (pool, address): load for pool, inner in message.loads.items() for address, load in inner.items()
        }
        held = peer.loads if peer is not None else {}
        if self._entries - len(held) + len(loads) > ENTRIES_MAX:
            self.counts["rejected_too_many_endpoints"] += 1
            return
        if peer is None:
            peer = self._peers[sender] = _Peer(heard_ns)
            self._gone.pop(sender, None)
            self._membership_changed = True
        peer.heard_ns = max(peer.heard_ns, heard_ns)
        peer.sequence = message.sequence
        self._need(peer, message)
        for key in [key for key in peer.loads if key not in loads]:
            self._put(peer, key, NO_LOAD)
        for key, load in loads.items():
            self._put(peer, key, load)
        self.counts["taken_full"] += 1

    def _take_delta(self, sender: str, message: Delta, now_ns: int) -> None:
        if message.sequence <= self._last_sequence(sender):
            self.counts["ignored_old"] += 1
            return
        peer = self._peers.get(sender)
        if peer is None:
            # A part says little of the whole; the whole comes within the second, or when asked for.
            self.counts["ignored_delta_first"] += 1
            self.wants_full = True
            return
        size = sum(map(len, message.loads.values()))
        if len(peer.loads) + size > ENDPOINTS_MAX or self._entries + size > ENTRIES_MAX:
            added = sum(
                load != NO_LOAD and (pool, address) not in peer.loads
                for pool, inner in message.loads.items()
                for address, load in inner.items()
            )
            if len(peer.loads) + added > ENDPOINTS_MAX or self._entries + added > ENTRIES_MAX:
                self.counts["rejected_too_many_endpoints"] += 1
                return
        if message.sequence != peer.sequence + 1:
            self.counts["gaps"] += 1
            self.wants_full = True
        peer.heard_ns = now_ns
        peer.sequence = message.sequence
        self._need(peer, message)
        for pool, inner in message.loads.items():
            for address, load in inner.items():
                self._put(peer, (pool, address), load)
        self.counts["taken_delta"] += 1

    def _need(self, peer: _Peer, message: FullLoads | Delta) -> None:
        # What a peer refused before it was heard of first is not known to be of late.
        if peer.refused is not None:
            for pool, count in message.refused.items():
                if (more := count - peer.refused.get(pool, 0)) > 0:
                    self._refused[pool] += min(more, REFUSED_AT_ONCE_MAX)
        peer.refused = message.refused
        if peer.needs or message.needs:
            peer.needs = {
                pool: [TurnRow(tenant, *figures) for tenant, rows in tenants.items() for figures in rows]
                for pool, tenants in message.needs.items()
            }
            self._membership_changed = True

    def _put(self, peer: _Peer, key: Key, load: Load) -> None:
        """Set one endpoint of one peer: the sum moves by the difference, so it is the peers' sum always."""
        before = peer.loads.get(key, NO_LOAD)
        if load == before:
            return
        if load == NO_LOAD:
            del peer.loads[key]
            self._entries -= 1
        else:
            self._entries += before == NO_LOAD
            peer.loads[key] = load
        requests, permits, tokens = self._sums.get(key, NO_LOAD)
        total = (requests + load[0] - before[0], permits + load[1] - before[1], tokens + load[2] - before[2])
        assert min(total) >= 0, (key, total)
        if total == NO_LOAD:
            del self._sums[key]
        else:
            self._sums[key] = total
        self.changed.add(key)

    def _forget(self, sender: str, sequence: int, now_ns: int) -> None:
        self._gone[sender] = (sequence, now_ns)
        self._gone.move_to_end(sender)
        while len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)
        peer = self._peers.pop(sender, None)
        if peer is None:
            return
        self._membership_changed = True
        for key in list(peer.loads):
            self._put(peer, key, NO_LOAD)
