"""Loads of several services, without Redis: change detection, sums, ageing, hostile peers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.absence import HEARING_NS
from extproc.state import messages, share
from extproc.state.messages import NEEDS_MAX, Bye, Delta, FullLoads, Hello, Load, Reports, decode, encode
from extproc.state.share import (
    ENDPOINTS_MAX,
    NEEDS_SILENT_NS,
    PEER_SILENT_NS,
    PEERS_MAX,
    REFRESH_NS,
    OwnLoad,
    PeerLoads,
)
from tests.stand.examples import examples

S, MS = 1_000_000_000, 1_000_000
A, B = ("p", "10.0.0.1:80"), ("p", "10.0.0.2:80")


def own(name: str = "a") -> OwnLoad:
    return OwnLoad(name)


def test_the_first_publication_is_full_and_the_next_only_what_changed() -> None:
    """A delta names the changed endpoints, with zeros for one that carries nothing any more."""
    load = own()
    first = load.next({A: (1, 1, 10), B: (2, 2, 20)}, now_ns=0)
    assert first is not None
    assert first.full
    assert decode(first.frame)[1] == FullLoads(1, {"p": {A[1]: (1, 1, 10), B[1]: (2, 2, 20)}})
    second = load.next({A: (3, 3, 30)}, now_ns=100 * MS)
    assert second is not None
    assert not second.full
    assert decode(second.frame)[1] == Delta(2, {"p": {A[1]: (3, 3, 30), B[1]: (0, 0, 0)}})


def test_nothing_new_is_not_published_and_nothing_sooner_than_the_interval() -> None:
    """Between two publications lies the interval; a change meanwhile goes with the next."""
    load = own()
    assert load.next({}, now_ns=0) is not None
    assert load.next({A: (1, 1, 1)}, now_ns=99 * MS) is None
    assert load.next({A: (1, 1, 1)}, now_ns=100 * MS) is not None
    assert load.next({A: (1, 1, 1)}, now_ns=200 * MS) is None
    assert load.next({A: (1, 1, 1), B: (0, 0, 0)}, now_ns=300 * MS) is None


def test_a_full_one_goes_out_each_second_and_when_it_is_wanted() -> None:
    """The heartbeat repeats everything even when nothing changes."""
    load = own()
    load.next({A: (1, 1, 1)}, now_ns=0)
    beat = load.next({A: (1, 1, 1)}, now_ns=REFRESH_NS)
    assert beat is not None
    assert beat.full
    load.want_full()
    assert load.next({A: (1, 1, 1)}, now_ns=REFRESH_NS + 50 * MS) is None
    asked = load.next({A: (1, 1, 1)}, now_ns=REFRESH_NS + 100 * MS)
    assert asked is not None
    assert asked.full


def test_what_we_tell_is_within_the_bounds_that_others_hold_us_to() -> None:
    """A load too large is told as the largest, endpoints too many are left out."""
    load = own()
    told = load.next({("p", str(i)): (2**60, 1, 2**60) for i in range(ENDPOINTS_MAX + 9)}, now_ns=0)
    assert told is not None
    assert len(told.frame) < messages.MESSAGE_BYTES_MAX
    message = decode(told.frame)[1]
    assert isinstance(message, FullLoads)
    assert len(message.loads["p"]) == ENDPOINTS_MAX
    assert message.loads["p"]["0"] == (messages.REQUESTS_MAX, 1, messages.TOKENS_MAX)
    swapped = load.next({("q", str(i)): (1, 1, 1) for i in range(ENDPOINTS_MAX)}, now_ns=100 * MS)
    assert swapped is not None
    assert swapped.full


def test_sums_are_over_peers_and_named_when_they_change() -> None:
    """Two peers on one endpoint add up; `changed` names what differs since it was told."""
    peers = PeerLoads("me")
    peers.take(encode("a", FullLoads(1, {"p": {A[1]: (1, 2, 30)}})), now_ns=0)
    peers.take(encode("b", FullLoads(1, {"p": {A[1]: (4, 5, 60), B[1]: (1, 1, 1)}})), now_ns=0)
    assert peers.sums == {A: (5, 7, 90), B: (1, 1, 1)}
    assert peers.load("p", "elsewhere") == (0, 0, 0)
    assert peers.deciders == 3
    assert peers.changed == {A, B}
    peers.told()
    assert not peers.news
    peers.take(encode("b", FullLoads(2, {"p": {A[1]: (4, 5, 60), B[1]: (1, 1, 1)}})), now_ns=0)
    assert not peers.news
    peers.take(encode("b", Delta(3, {"p": {B[1]: (0, 0, 0)}})), now_ns=0)
    assert peers.changed == {B}
    assert peers.sums == {A: (5, 7, 90)}


def test_a_peer_is_not_silent_while_we_did_not_listen() -> None:
    """After a stall of ours it keeps its load until it could be heard; then silence counts."""
    peers = PeerLoads("me")
    peers.take(encode("a", FullLoads(1, {})), now_ns=S)
    back_ns = 60 * S
    peers.absence.away(since_ns=2 * S, now_ns=back_ns)
    assert peers.expire(now_ns=back_ns) == []
    assert peers.expire(now_ns=back_ns + HEARING_NS) == ["a"]


def test_a_silent_peer_vanishes_with_all_its_load() -> None:
    """Three seconds after its last word, and an old message of it does not bring it back."""
    peers = PeerLoads("me")
    frame = encode("a", FullLoads(7, {"p": {A[1]: (1, 1, 1)}}))
    peers.take(frame, now_ns=0)
    peers.told()
    assert peers.expire(now_ns=PEER_SILENT_NS - 1) == []
    assert peers.expire(now_ns=PEER_SILENT_NS) == ["a"]
    assert peers.sums == {}
    assert peers.deciders == 1
    assert peers.changed == {A}
    peers.take(frame, now_ns=PEER_SILENT_NS)
    assert peers.deciders == 1
    peers.take(encode("a", FullLoads(8, {})), now_ns=PEER_SILENT_NS)
    assert peers.deciders == 2


def test_who_has_fallen_silent_while_somebody_waited_there_fills_no_places() -> None:
    """Half a second after its last word nobody keeps places for it; where nobody waited it may be silent."""
    peers = PeerLoads("me")
    peers.take(encode("a-1", FullLoads(1, {}, {"p": {"t": [(0, 3, 1, 9)]}})), now_ns=0)
    peers.take(encode("b-1", FullLoads(1, {}, {"p": {"t": [(0, 0, 1, 0)]}})), now_ns=0)
    peers.told()
    assert peers.expire(now_ns=NEEDS_SILENT_NS - 1) == []
    assert not peers.news
    assert peers.expire(now_ns=NEEDS_SILENT_NS) == []
    assert peers.news
    assert (peers.needs["a"], list(peers.needs["b"])) == ({}, ["p"])
    assert peers.deciders == 3


def test_a_peer_without_load_is_news_as_well() -> None:
    """The number of deciders has changed."""
    peers = PeerLoads("me")
    peers.take(encode("a", FullLoads(1, {})), now_ns=0)
    assert peers.news
    peers.told()
    peers.take(encode("a", Bye(2)), now_ns=0)
    assert peers.news
    assert peers.deciders == 1


def test_what_was_stored_is_as_old_as_it_is() -> None:
    """A load that was found, not heard, ages from when it was said; too old a one is not taken."""
    peers = PeerLoads("me")
    peers.take(encode("a", FullLoads(1, {})), now_ns=PEER_SILENT_NS, age_ns=PEER_SILENT_NS - 1)
    peers.take(encode("b", FullLoads(1, {})), now_ns=PEER_SILENT_NS, age_ns=PEER_SILENT_NS)
    assert peers.names == ["a"]
    assert peers.expire(now_ns=PEER_SILENT_NS + 1) == ["a"]


def test_our_own_echo_doubles_and_old_news_change_nothing() -> None:
    """A sequence counts once and only forwards."""
    peers = PeerLoads("me")
    peers.take(encode("me", FullLoads(1, {"p": {A[1]: (9, 9, 9)}})), now_ns=0)
    for sequence in (5, 5, 4):
        peers.take(encode("a", FullLoads(sequence, {"p": {A[1]: (sequence, 0, 0)}})), now_ns=0)
    peers.take(encode("a", Delta(5, {"p": {A[1]: (1, 1, 1)}})), now_ns=0)
    peers.take(encode("a", Bye(5)), now_ns=0)
    assert peers.sums == {A: (5, 0, 0)}
    assert peers.counts["ignored_old"] == 3


def test_a_gap_is_noticed_and_asked_about() -> None:
    """A delta is taken across a gap, as newer than nothing, but one without a full before it is not."""
    peers = PeerLoads("me")
    peers.take(encode("a", Delta(3, {"p": {A[1]: (1, 1, 1)}})), now_ns=0)
    assert peers.wants_full
    assert peers.deciders == 1
    peers.wants_full = False
    peers.take(encode("a", FullLoads(4, {})), now_ns=0)
    peers.take(encode("a", Delta(5, {"p": {A[1]: (1, 1, 1)}})), now_ns=0)
    assert not peers.wants_full
    peers.take(encode("a", Delta(7, {"p": {A[1]: (2, 2, 2)}})), now_ns=0)
    assert peers.wants_full
    assert peers.sums == {A: (2, 2, 2)}


def test_reports_and_hellos_are_handed_to_the_shell() -> None:
    """They are nobody's load."""
    peers = PeerLoads("me")
    reports = Reports([("node-1", b"\x00\xff"), ("node-2", b"")])
    assert peers.take(encode("a", reports), now_ns=0) == reports
    assert peers.take(encode("a", Hello()), now_ns=0) == Hello()
    assert peers.take(encode("me", reports), now_ns=0) is None
    assert peers.deciders == 1


NAN = float("nan")
HOSTILE: dict[str, object] = {
    "negative": ["full", 2, {"p": {"a": [-1, 0, 0]}}],
    "huge": ["full", 2, {"p": {"a": [1, 1, 10**18]}}],
    "not a number": ["full", 2, {"p": {"a": [1, 1, NAN]}}],
    "infinite": ["delta", 2, {"p": {"a": [1, float("inf"), 1]}}],
    "fraction": ["full", 2, {"p": {"a": [1.5, 1, 1]}}],
    "boolean": ["full", 2, {"p": {"a": [True, 1, 1]}}],
    "text": ["full", 2, {"p": {"a": ["1", 1, 1]}}],
    "too few": ["full", 2, {"p": {"a": [1, 1]}}],
    "unknown field": ["full", 2, {}, "more"],
    "unknown kind": ["purge", 2],
    "long name": ["full", 2, {"p" * 999: {"a": [1, 1, 1]}}],
    "empty name": ["full", 2, {"": {"a": [1, 1, 1]}}],
    "sequence zero": ["full", 0, {}],
    "sequence huge": ["full", 2**64 - 1, {}],
    "a map": {"full": 2},
    "nothing": None,
    "huge report": ["reports", [["n", b"x" * (messages.REPORT_BYTES_MAX + 1)]]],
    "nameless report": ["reports", [["", b"x"]]],
    "too many reports": ["reports", [["n", b"x"]] * (messages.REPORTS_PER_FRAME_MAX + 1)],
    "negative need": ["full", 2, {}, {"p": {"t": [[0, -1, 0, 0]]}}],
    "no such level": ["delta", 2, {}, {"p": {"t": [[99, 1, 0, 0]]}}],
    "an endless wait": ["full", 2, {}, {"p": {"t": [[0, 1, 0, 10**15]]}}],
    "too many levels": ["full", 2, {}, {"p": {"t": [[0, 1, 0, 0]] * 99}}],
    "too many needs": [
        "full",
        2,
        {},
        {"p": {f"t{i}": [[0, 1, 0, 0]] for i in range(NEEDS_MAX + 1)}},
    ],
    "unknown field after": ["full", 2, {}, {}, "more"],
    "too many endpoints": ["full", 2, {"p": {str(i): [1, 1, 1] for i in range(ENDPOINTS_MAX + 1)}}],
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
def test_what_no_service_says_is_rejected_and_counted(message: object) -> None:
    """It changes nothing, and does not even count as a word of the peer."""
    peers = PeerLoads("me")
    peers.take(encode("a", FullLoads(1, {"p": {A[1]: (1, 1, 1)}})), now_ns=0)
    peers.take(b"a\0" + msgspec.msgpack.encode(message), now_ns=PEER_SILENT_NS - 1)
    assert peers.sums == {A: (1, 1, 1)}
    assert sum(n for code, n in peers.counts.items() if code.startswith("rejected_")) == 1
    assert peers.expire(now_ns=PEER_SILENT_NS) == ["a"]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0",
        b"a",
        b"a\0",
        b"a b\0\x91\xa5hello",
        b"\xff\0\x91\xa5hello",
        b"x" * 200 + b"\0\x91\xa5hello",
    ],
)
def test_a_frame_without_a_proper_sender_is_rejected(frame: bytes) -> None:
    """As is one without a message, and one too long to be looked at."""
    peers = PeerLoads("me")
    assert peers.take(frame, now_ns=0) is None
    assert peers.take(b"a\0" + b"\x90" * messages.MESSAGE_BYTES_MAX, now_ns=0) is None
    assert sum(peers.counts.values()) == 2


def test_peers_and_endpoints_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer too many is not heard; endpoints too many are refused, whole message by whole message."""
    peers = PeerLoads("me")
    for number in range(PEERS_MAX + 1):
        peers.take(encode(f"peer-{number}", FullLoads(1, {"p": {"a": (1, 1, 1)}})), now_ns=0)
    assert peers.deciders == PEERS_MAX + 1
    assert peers.counts["rejected_too_many_peers"] == 1
    monkeypatch.setattr(share, "ENTRIES_MAX", PEERS_MAX + 2)
    peers.take(encode("peer-0", Delta(2, {"p": {"a": (2, 2, 2), "b": (1, 1, 1), "c": (1, 1, 1)}})), now_ns=0)
    assert peers.load("p", "c") == (1, 1, 1)
    peers.take(encode("peer-1", Delta(2, {"p": {"d": (1, 1, 1)}})), now_ns=0)
    peers.take(encode("peer-1", FullLoads(2, {"p": {"d": (1, 1, 1), "e": (1, 1, 1)}})), now_ns=0)
    assert peers.counts["rejected_too_many_endpoints"] == 2
    peers.take(encode("peer-0", Delta(3, {"p": {"b": (0, 0, 0), "a": (5, 5, 5)}})), now_ns=0)
    assert peers.load("p", "a") == (PEERS_MAX + 4,) * 3
    monkeypatch.setattr(share, "ENDPOINTS_MAX", 2)
    peers.take(encode("peer-0", Delta(4, {"p": {"x": (1, 1, 1)}})), now_ns=0)
    assert peers.counts["rejected_too_many_endpoints"] == 3


def test_the_memory_of_those_gone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and by time."""
    monkeypatch.setattr(share, "GONE_MAX", 3)
    peers = PeerLoads("me")
    for number in range(9):
        peers.take(encode(f"peer-{number}", Bye(1)), now_ns=0)
    assert len(peers._gone) == 3
    peers.expire(now_ns=share.GONE_NS)
    assert not peers._gone


loads_of_one = st.dictionaries(
    st.tuples(st.sampled_from("pq"), st.sampled_from("abc")),
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 500)),
    max_size=4,
)
steps = st.one_of(
    st.tuples(st.just("load"), st.integers(0, 2), loads_of_one),
    st.tuples(st.just("publish"), st.integers(0, 2)),
    st.tuples(st.just("refresh"), st.integers(0, 2)),
    st.tuples(st.just("bye"), st.integers(0, 2)),
    # Any frame ever published may arrive at any time, again and again.
    st.tuples(st.just("deliver"), st.integers(0, 99)),
    st.tuples(st.just("wait"), st.integers(1, 900)),  # 60 of them stay within GONE_NS
)


def added(states: Sequence[dict[tuple[str, str], Load]]) -> dict[tuple[str, str], Load]:
    total: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for state in states:
        for key, load in state.items():
            for i in range(3):
                total[key][i] += load[i]
    return {key: (r, p, t) for key, (r, p, t) in total.items() if (r, p, t) != (0, 0, 0)}


@examples(300)
@given(st.lists(steps, max_size=60))
def test_the_sums_are_what_the_live_peers_said_last(script: list[tuple[object, ...]]) -> None:
    """Whatever is lost, doubled, late or expired; and one full round makes them what is really so."""
    names = ["a", "b", "c"]
    owns = [OwnLoad(name, interval_ns=1) for name in names]
    real: list[dict[tuple[str, str], Load]] = [{}, {}, {}]
    frames: list[bytes] = []
    peers = PeerLoads("me")
    now_ns = 1
    # The model: by sender its last sequence, when it was heard, what it said; nothing once it is gone.
    last: dict[str, int] = defaultdict(int)
    live: dict[str, tuple[int, dict[tuple[str, str], Load]]] = {}

    def deliver(frame: bytes) -> None:
        peers.take(frame, now_ns=now_ns)
        sender, message = decode(frame)
        assert isinstance(message, FullLoads | Delta | Bye)
        if message.sequence <= last[sender]:
            return
        if isinstance(message, Bye):
            live.pop(sender, None)
        elif isinstance(message, FullLoads) or sender in live:
            said = {} if isinstance(message, FullLoads) else live[sender][1]
            flat = {(pool, a): load for pool, inner in message.loads.items() for a, load in inner.items()}
            live[sender] = (now_ns, {**said, **flat})
        else:
            return
        last[sender] = message.sequence

    for step in script:
        now_ns += 1
        match step:
            case ("load", int(who), dict(loads)):
                real[who] = loads
            case ("publish" | "refresh" as how, int(who)):
                if how == "refresh":
                    owns[who].want_full()
                publication = owns[who].next(real[who], now_ns=now_ns)
                if publication is not None:
                    frames.append(publication.frame)
            case ("bye", int(who)):
                frames.append(owns[who].bye())
            case ("deliver", int(number)) if frames:
                deliver(frames[number % len(frames)])
            case ("wait", int(ms)):
                now_ns += ms * MS
                peers.expire(now_ns=now_ns)
                live = {n: (at, said) for n, (at, said) in live.items() if now_ns - at < PEER_SILENT_NS}
        assert peers.sums == added([said for _, said in live.values()])
        assert peers.deciders == len(live) + 1
        assert all(min(load) >= 0 for load in peers.sums.values())
    for who, load in enumerate(owns):
        now_ns += 1
        load.want_full()
        publication = load.next(real[who], now_ns=now_ns)
        assert publication is not None
        deliver(publication.frame)
    assert peers.sums == added(real)
    now_ns += PEER_SILENT_NS
    peers.expire(now_ns=now_ns)
    assert peers.sums == {}
    assert peers._entries == 0


@examples(300)
@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_garbage_and_damage_never_raise_and_never_break_the_sums(junk: bytes, place: int, byte: int) -> None:
    """A damaged frame is taken as what it says or not at all; sums stay the peers' sums."""
    peers = PeerLoads("me")
    good = encode("a", FullLoads(1, {"p": {A[1]: (1, 2, 3)}, "q": {"x": (300, 2, 70_000)}}))
    peers.take(good, now_ns=0)
    before = dict(peers.sums)
    peers.take(junk, now_ns=0)
    peers.take(b"a\0" + junk, now_ns=0)
    assert peers.sums == before
    damaged = bytearray(encode("a", Delta(2, {"p": {A[1]: (5, 0, 9)}, "q": {"x": (0, 0, 0)}})))
    damaged[place % len(damaged)] = byte
    peers.take(bytes(damaged), now_ns=0)
    assert peers.sums == added([peer.loads for peer in peers._peers.values()])
    assert peers._entries == sum(len(peer.loads) for peer in peers._peers.values())


def test_peers_hear_what_was_refused_and_count_it_once() -> None:
    """Counts are since the sender began: lost messages and repeated ones change nothing, and neither does
    what was refused before it was heard of."""
    load, peers = own(), PeerLoads("b")
    frames = []
    for step, count in enumerate((5, 5, 8, 8, 20)):
        publication = load.next({}, now_ns=step * 100 * MS, refused={"p": count})
        assert (publication is None) is (step in (1, 3)), "nothing new is not published"
        if publication is not None:
            frames.append(publication.frame)
    peers.take(frames[0], now_ns=0)
    assert peers.refused() == {}
    peers.take(frames[2], now_ns=MS)
    assert peers.news
    assert peers.refused() == {"p": 15}
    assert not peers.refused()
    peers.take(frames[1], now_ns=2 * MS)
    beat = load.next({}, now_ns=2 * REFRESH_NS, refused={"p": 20})
    assert beat is not None
    peers.take(beat.frame, now_ns=3 * MS)
    assert peers.refused() == {}


def test_a_peer_that_claims_absurdly_many_refusals_is_believed_a_bounded_number() -> None:
    """One message adds a hundred thousand of one pool at the most; more pools than are told are refused."""
    peers = PeerLoads("b")
    peers.take(encode("a", FullLoads(1, {}, {}, {"p": 0})), now_ns=0)
    peers.take(encode("a", Delta(2, {}, {}, {"p": messages.REFUSED_MAX})), now_ns=0)
    assert peers.refused() == {"p": share.REFUSED_AT_ONCE_MAX}
    many = {f"p{at}": 1 for at in range(messages.REFUSED_POOLS_MAX + 1)}
    peers.take(encode("a", Delta(3, {}, {}, many)), now_ns=0)
    assert peers.counts["rejected_malformed"] == 1
    assert peers.refused() == {}
