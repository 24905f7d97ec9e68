"""Reports in, acknowledgements out: who may speak, in what order, and what is believed.

Owns the sequence, the clocks and the counts. No I/O: the server hands in bytes, the proven identity and
the two times.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
from google.protobuf.message import DecodeError

from extproc._pb import telemetry_pb2 as pb
from extproc.addresses import ip_of
from extproc.core.reports import ReplicaReport
from extproc.telemetry.checks import ImplausibleError, replicas

log = logging.getLogger(__name__)

#: A node's clock may differ from ours by this much; XID times beyond it would mean nothing.
CLOCK_SKEW_MS_MAX = 60_000
#: A report that took this much longer than the node's quickest is old news.
LATENESS_MS_MAX = 3_000
#: Late reports that keep coming for this long are a clock that was set back, and the new measure.
LATE_FOR_NS = 10_000_000_000
#: Nodes remembered; above it those silent for so long are forgotten, and new ones refused if none is. What
#: they could replay is older than the clocks may differ.
NODES_MAX = 10_000
FORGET_NS = 600_000_000_000
BOOTS_MAX = 64
#: An owner of an address that has been silent for this long may be followed by another node.
OWNER_SILENT_NS = 10_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PushingNode:
    """A node that may push. `networks` bounds the addresses it may speak for; empty means any."""

    name: str
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    def may_speak_for(self, address: str) -> bool:
        """Whether an ip:port lies within the node's networks."""
        if not self.networks:
            return True
        host = ip_of(address)
        return any(host in network for network in self.networks)


@dataclass(slots=True)
class _Heard:
    """The last that was believed of a node."""

    boot_id: int
    sequence: int = 0
    #: The smallest (our clock − its clock) seen: its offset, at the quickest way.
    offset_ms: int | None = None
    heard_ns: int = 0
    #: The first of the late reports since the last that was not.
    late_ns: int | None = None
    addresses: frozenset[str] = frozenset()
    #: Earlier boots, oldest first.
    past_boots: tuple[int, ...] = ()

    def booted(self, boot_id: int) -> _Heard:
        """What is known when the agent has started anew."""
        past = (*self.past_boots, self.boot_id)[-BOOTS_MAX:]
        return _Heard(boot_id, heard_ns=self.heard_ns, addresses=self.addresses, past_boots=past)


class Ingest:
    """What the nodes have said, and who owns which address."""

    def __init__(
        self,
        nodes: Iterable[PushingNode],
        *,
        anyone: bool,
        on_reports: Callable[[str, list[ReplicaReport], int], None],
        on_leaving: Callable[[str, int], None],
        on_taken: Callable[[str, bytes], None] = lambda _node, _data: None,
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.anyone = anyone
        self.counts: Counter[str] = Counter()
        self._on_reports = on_reports
        self._on_leaving = on_leaving
        self._on_taken = on_taken
        self._heard: dict[str, _Heard] = {}
        self._owner: dict[str, str] = {}
        self._unwell: set[str] = set()

    def take(
        self, data: bytes, identity: str | None, *, now_ns: int, now_unix_ms: int, relayed: bool = False
    ) -> bytes:
        """Take one report; `identity` is the node name that the connection proved, None for nobody.

        `relayed` by a peer: an agent that speaks to both of us makes duplicates, which are no fault.

        Returns the acknowledgement. A report that is not believed changes nothing but the counts.
        """
        report = pb.Report()
        try:
            report.ParseFromString(data)
            offset_ms = now_unix_ms - report.sent_unix_ms
            heard = self._admit(report, identity, offset_ms, now_ns)
            checked = replicas(report)
            self._check_owners(report.node, checked, now_ns)
            if not self.anyone and not self.nodes[report.node].networks:
                # It may speak of anything, and so nothing is its own.
                checked = [msgspec.structs.replace(each, own=False) for each in checked]
        except DecodeError:
            return self._reject(report, "garbage")
        except ImplausibleError as error:
            if relayed:
                self.counts[f"relayed.{error}"] += 1
                return b""
            return self._reject(report, str(error))
        self._believe(report, heard, checked, offset_ms, now_ns)
        self.counts["taken"] += 1
        if report.node in self._unwell:
            self._unwell.discard(report.node)
            log.info("node %s: reports are taken again", report.node)
        if not relayed:
            self._on_taken(report.node, data)
        if report.leaving:
            self._on_leaving(report.node, now_ns)
        else:
            self._on_reports(report.node, checked, now_ns)
        return pb.Ack(sequence=report.sequence).SerializeToString()

    def _admit(self, report: pb.Report, identity: str | None, offset_ms: int, now_ns: int) -> _Heard:
        """Identity, order and clock: what is known of the node, changed in nothing that counts.

        Raises ImplausibleError.
        """
        if report.node not in self.nodes and not (self.anyone and report.node):
            raise ImplausibleError("unknown_node")
        if not self.anyone and identity != report.node:
            raise ImplausibleError("not_this_node")
        if len(report.node) > 253:
            raise ImplausibleError("text_too_long")
        if report.node not in self._heard and len(self._heard) >= NODES_MAX and not self._forget(now_ns):
            raise ImplausibleError("too_many_nodes")
        if abs(offset_ms) > CLOCK_SKEW_MS_MAX:
            raise ImplausibleError("clock_skew")
        heard = self._heard.get(report.node) or _Heard(report.boot_id)
        if report.boot_id != heard.boot_id:
            if report.boot_id in heard.past_boots:
                raise ImplausibleError("replayed_boot")
            heard = heard.booted(report.boot_id)
        if report.sequence <= heard.sequence:
            raise ImplausibleError("out_of_order")
        if heard.offset_ms is not None and offset_ms - heard.offset_ms > LATENESS_MS_MAX:
            if heard.late_ns is None:
                heard.late_ns = now_ns
            if now_ns - heard.late_ns < LATE_FOR_NS:
                raise ImplausibleError("late")
            heard.offset_ms = None
        return heard

    def _check_owners(self, name: str, reports: list[ReplicaReport], now_ns: int) -> None:
        """An address belongs to the node that spoke of it first, until that node lets it go."""
        node = self.nodes.get(name)
        for report in reports:
            if node is not None and not node.may_speak_for(report.address):
                raise ImplausibleError("address_outside_networks")
            owner = self._owner.get(report.address, name)
            if owner != name and now_ns - self._heard[owner].heard_ns < OWNER_SILENT_NS:
                raise ImplausibleError("address_of_another_node")

    def _believe(
        self, report: pb.Report, heard: _Heard, checked: list[ReplicaReport], offset_ms: int, now_ns: int
    ) -> None:
        """Remember a report that passed every check."""
        name, now_said = report.node, frozenset(each.address for each in checked)
        if now_said != heard.addresses:
            self._disown(name, heard.addresses - now_said)
        for address in now_said:
            self._owner[address] = name
        heard.sequence, heard.heard_ns, heard.late_ns = report.sequence, now_ns, None
        heard.offset_ms = offset_ms if heard.offset_ms is None else min(offset_ms, heard.offset_ms)
        heard.addresses = now_said
        self._heard[name] = heard

    def _disown(self, name: str, addresses: Iterable[str]) -> None:
        for address in addresses:
            if self._owner.get(address) == name:
                del self._owner[address]

    def _forget(self, now_ns: int) -> bool:
        """Forget the nodes that have been silent for long; false when there is none."""
        silent = [name for name, heard in self._heard.items() if now_ns - heard.heard_ns > FORGET_NS]
        for name in silent:
            self._disown(name, self._heard.pop(name).addresses)
        return bool(silent)

    def _reject(self, report: pb.Report, code: str) -> bytes:
        self.counts[f"rejected.{code}"] += 1
        # One line a transition: a poisoned agent would otherwise fill the disk.
        if report.node not in self._unwell and len(self._unwell) < NODES_MAX:
            self._unwell.add(report.node)
            log.warning("node %r: report %d rejected: %s", report.node[:64], report.sequence, code)
        return pb.Ack(sequence=report.sequence, rejected=code).SerializeToString()
