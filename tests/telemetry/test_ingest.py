from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from extproc._pb import telemetry_pb2 as pb
from extproc.core.fleet import Fleet, Member, PoolSpec
from extproc.core.reports import ReplicaReport
from extproc.telemetry import ingest as module
from extproc.telemetry.ingest import Ingest, PushingNode
from tests.stand.examples import examples


def test_a_report_is_taken_and_acknowledged(listening: Any) -> None:
    """Its replicas go on, its number comes back."""
    message = listening.report(5)
    ack = listening.ingest.take(
        message.SerializeToString(), "n1", now_ns=listening.now_ns, now_unix_ms=listening.unix_ms
    )
    assert pb.Ack.FromString(ack) == pb.Ack(sequence=5)
    [(node, [report])] = listening.taken
    assert (node, report.address, report.node) == ("n1", "10.0.1.1:80", "n1")
    assert listening.ingest.counts == {"taken": 1}


def test_rejections_name_their_cause_and_change_nothing_else(listening: Any) -> None:
    """Each is counted; the next plausible report is taken as if it had not been."""
    cases = [
        (b"\xff\xff garbage", "n1", "garbage"),
        (listening.report(node="stranger"), "n1", "unknown_node"),
        (listening.report(node=""), "n1", "unknown_node"),
        (listening.report(), "n2", "not_this_node"),
        (listening.report(), None, "not_this_node"),
        (listening.report(sent_unix_ms=listening.unix_ms - 61_000), "n1", "clock_skew"),
        (listening.report(sent_unix_ms=listening.unix_ms + 61_000), "n1", "clock_skew"),
        (listening.report(sent_unix_ms=-(2**63)), "n1", "clock_skew"),
        (listening.report(address="10.0.2.1:80"), "n1", "address_outside_networks"),
        (listening.report(address="[::1]:80"), "n1", "address_outside_networks"),
        (listening.report(2**64 - 1, boot_id=8, address="nonsense"), "n1", "bad_address"),
        (listening.report(0), "n1", "out_of_order"),
    ]
    for message, identity, code in cases:
        assert listening.take(message, identity) == code
        assert listening.ingest.counts[f"rejected.{code}"] > 0
    assert listening.taken == []
    assert listening.take(listening.report()) == ""


def test_replayed_and_reordered_reports_are_refused(listening: Any) -> None:
    """Numbers only rise, gaps are fine, and a new boot ends the old one for good."""
    first = listening.report(1)
    assert listening.take(first) == ""
    assert listening.take(first) == "out_of_order"
    assert listening.take(listening.report(5)) == ""
    assert listening.take(listening.report(4)) == "out_of_order"
    assert listening.take(listening.report(1, boot_id=8)) == ""
    assert listening.take(listening.report(6)) == "replayed_boot"
    assert listening.take(listening.report(2, boot_id=8)) == ""
    assert len(listening.taken) == 4


def test_boots_remembered_are_bounded(listening: Any) -> None:
    """The oldest is forgotten, not all of them."""
    for boot in range(1, module.BOOTS_MAX + 3):
        assert listening.take(listening.report(boot_id=boot)) == ""
    assert listening.take(listening.report(boot_id=2)) == "replayed_boot"
    assert listening.take(listening.report(boot_id=1)) == ""


def test_old_news_are_refused(listening: Any) -> None:
    """A report that was three seconds longer on its way than the quickest is not the present."""
    assert listening.take(listening.report(1, sent_unix_ms=listening.unix_ms + 20_000)) == ""
    assert listening.take(listening.report(2, sent_unix_ms=listening.unix_ms + 17_000)) == ""
    assert listening.take(listening.report(3, sent_unix_ms=listening.unix_ms + 16_999)) == "late"
    assert listening.take(listening.report(3, sent_unix_ms=listening.unix_ms + 20_000)) == ""


def test_a_clock_that_was_set_back_is_followed(listening: Any) -> None:
    """A node's clock may be corrected by half a minute: after ten seconds that is its time."""
    sequence = 1
    assert listening.take(listening.report(sequence, sent_unix_ms=listening.unix_ms + 30_000)) == ""
    for _ in range(10):
        listening.passes(1)
        sequence += 1
        assert listening.take(listening.report(sequence)) == "late"
    listening.passes(1)
    for _ in range(3):
        sequence += 1
        assert listening.take(listening.report(sequence)) == ""


def test_an_address_has_one_owner(listening: Any) -> None:
    """Nobody speaks for another's replica, until it lets go or has long been silent."""
    assert listening.take(listening.report(1)) == ""
    theirs = {"node": "n2", "boot_id": 3}
    assert listening.take(listening.report(1, **theirs), "n2") == "address_of_another_node"
    assert listening.take(listening.report(2, address="10.0.1.2:80")) == ""
    assert listening.take(listening.report(2, **theirs), "n2") == "", "it was let go"
    assert listening.take(listening.report(3)) == "address_of_another_node"
    listening.passes(10)
    assert listening.take(listening.report(4)) == "", "its owner has been silent"


def test_leaving_is_told(listening: Any) -> None:
    """The last words of an agent are no report."""
    assert listening.take(listening.report(leaving=True)) == ""
    assert (listening.taken, listening.left) == ([], ["n1"])


def test_relayed_duplicates_are_no_fault(listening: Any) -> None:
    """An agent that speaks to two services makes them; nobody is told off."""
    assert listening.take(listening.report(1)) == ""
    assert listening.take(listening.report(1), relayed=True) == ""
    assert listening.take(listening.report(2), relayed=True) == ""
    assert listening.ingest.counts == {"taken": 2, "relayed.out_of_order": 1}


def test_without_identities_anyone_speaks_for_itself(listen: Callable[..., Any]) -> None:
    """Any name but none, and addresses still have one owner."""
    here = listen(anyone=True)
    assert here.take(here.report(node="somebody", address="192.168.0.1:80"), None) == ""
    assert here.take(here.report(node="else", address="192.168.0.1:80"), None) == "address_of_another_node"
    assert here.take(here.report(node=""), None) == "unknown_node"
    assert here.take(here.report(node="x" * 254), None) == "text_too_long"


def test_nodes_remembered_are_bounded(listen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound a new one is refused, until somebody has been silent for long."""
    monkeypatch.setattr(module, "NODES_MAX", 2)
    here = listen(anyone=True)
    for i in (1, 2):
        assert here.take(here.report(node=f"s{i}", address=f"10.0.1.{i}:80"), None) == ""
    here.passes(601)
    assert here.take(here.report(2, node="s2", address="10.0.1.2:80"), None) == ""
    assert here.take(here.report(node="s3", address="10.0.1.1:80"), None) == ""
    assert here.take(here.report(node="s4", address="10.0.1.4:80"), None) == "too_many_nodes"
    assert set(here.ingest._heard) == {"s2", "s3"}


def test_a_poisoned_agent_fills_no_disk(listening: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One line when its reports turn bad and one when they are good again."""
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            listening.take(listening.report(address="nonsense"))
        listening.take(listening.report())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


words = st.text(max_size=12)
NOW = st.just(1_700_000_000_000)
i64 = st.integers(-(2**63), 2**63 - 1)
addresses = st.sampled_from(["10.0.1.1:80", "10.0.1.2:80"])
xids = st.lists(st.builds(pb.Xid, code=st.sampled_from([13, 79, 94]), unix_ms=NOW | i64), max_size=3)


def message(kind: Any, *, wild: bool, **always: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A message with any of its fields: small and plausible figures, or whatever the wire can carry."""
    u32 = st.integers(0, 2**32 - 1) if wild else st.integers(0, 50)
    reals = st.floats() | st.sampled_from([1e308, -1.0]) if wild else st.floats(0.0, 50.0)
    by_type = {
        FieldDescriptor.TYPE_STRING: words,
        FieldDescriptor.TYPE_UINT32: u32,
        FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1) if wild else u32,
        FieldDescriptor.TYPE_FIXED64: st.integers(0, 3),
        FieldDescriptor.TYPE_INT64: i64,
        FieldDescriptor.TYPE_DOUBLE: reals,
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_ENUM: st.integers(0, 9 if wild else 7),
    }
    fields = {}
    for field in kind.DESCRIPTOR.fields:
        one = by_type.get(field.type)
        if one is not None and field.name not in always:
            fields[field.name] = st.lists(one, max_size=3) if field.is_repeated else one
    return st.fixed_dictionaries(always, optional=fields).map(lambda given: kind(**given))


def reports(*, wild: bool) -> st.SearchStrategy[Any]:
    """Reports of the nodes and of strangers, or of the nodes alone."""
    more = {"kv_capacity_tokens": st.just(50), "kv_used_tokens": st.integers(0, 50)}
    total = {"memory_total_bytes": st.just(50), "memory_used_bytes": st.integers(0, 50)}
    tricks = words | st.sampled_from(["[::1]:80", "10.0.1.1:" + "9" * 6000])
    replica = message(
        pb.Replica,
        wild=wild,
        address=addresses | tricks if wild else addresses,
        pool=st.sampled_from("pppq"),
        gpu_uuids=st.lists(st.sampled_from("abc"), max_size=3),
        **({} if wild else more),
    )
    gpu = message(pb.Gpu, wild=wild, uuid=st.sampled_from("ab"), xids=xids, **({} if wild else total))
    return message(
        pb.Report,
        wild=wild,
        node=st.sampled_from(["n1", "n2", "n3", ""] if wild else ["n1", "n2"]),
        boot_id=st.integers(1, 2),
        sequence=st.integers(1, 2**64 - 1) if wild else st.integers(1, 20),
        sent_unix_ms=NOW | i64 if wild else NOW,
        replicas=st.lists(replica, max_size=2, unique_by=lambda each: each.address),
        gpus=st.lists(gpu, max_size=2),
    )


def known_fleet() -> Fleet:
    """Two replicas with work on them, by our ledger and a peer's."""
    members = (Member("10.0.1.1:80"), Member("10.0.1.2:80"))
    fleet = Fleet([PoolSpec(name="p", models=("m",), strategy="least_work", endpoints=members)])
    for i, endpoint in enumerate(fleet.endpoints):
        endpoint.requests = endpoint.permits = 3 + i
        endpoint.tokens = 1000
        endpoint.peer_requests = endpoint.peer_permits = 2
        endpoint.peer_tokens = 77
    return fleet


def tried(sent: list[Any]) -> Ingest:
    """Send everything twice; nothing raises, nothing lowers a load, nothing is taken twice."""
    fleet = known_fleet()
    floors = {e.address: (e.load_requests, e.load_permits, e.tokens + e.peer_tokens) for e in fleet.endpoints}
    taken: list[ReplicaReport] = []
    here = Ingest(
        [PushingNode(name="n1"), PushingNode(name="n2")],
        anyone=False,
        on_reports=lambda _, reports, __: taken.extend(reports),
        on_leaving=lambda _, __: [fleet.silenced(address) for address in floors],
    )
    now_ns = 0
    for each in sent:
        data = each if isinstance(each, bytes) else each.SerializeToString()
        identity = "n1" if isinstance(each, bytes) else each.node
        for again in (False, True):
            now_ns += 100_000_000
            del taken[:]
            ack = here.take(data, identity, now_ns=now_ns, now_unix_ms=1_700_000_000_000)
            if again:
                assert pb.Ack.FromString(ack).rejected, "a replay is never taken"
                assert not taken
            for report in taken:
                fleet.heard(report, now_ns=now_ns)
            fleet.step(now_ns=now_ns)
        for endpoint in fleet.endpoints:
            floor = floors[endpoint.address]
            assert endpoint.load_requests >= floor[0]
            assert endpoint.load_permits >= floor[1]
            assert endpoint.tokens + endpoint.peer_tokens >= floor[2]
            assert 1 <= endpoint.max_concurrent <= 128
            assert 0.0 <= endpoint.health.value <= 1.0
    assert sum(here.counts.values()) == 2 * len(sent)
    return here


@given(st.lists(st.binary(max_size=200) | reports(wild=True), max_size=8))
@examples(200)
def test_nothing_that_is_sent_breaks_it(sent: list[Any]) -> None:
    """Arbitrary bytes and arbitrary messages are answered."""
    tried(sent)


@given(st.lists(reports(wild=False), min_size=1, max_size=8))
@examples(200)
def test_what_is_taken_never_lowers_a_load(sent: list[Any]) -> None:
    """Plausible reports, of which the first at least is taken."""
    assert tried(sent).counts["taken"] >= 1
