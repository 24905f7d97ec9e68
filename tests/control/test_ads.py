"""The ADS protocol's state machine: every ordering, without a socket."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from extproc._pb import discovery_pb2 as pb
from extproc.control.ads import NAMES_MAX, AdsStream, RemoteProtocolError
from extproc.control.snapshot import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    SECRET_TYPE,
    TYPES,
    FleetSnapshot,
    Resource,
    Resources,
)
from tests.stand.examples import examples


def resources(contents: dict[str, str], *, members: bool = False) -> Resources:
    return Resources.of(
        Resource(name, text.encode(), frozenset({(name, text)}) if members else frozenset())
        for name, text in contents.items()
    )


def snapshot(clusters: dict[str, str], endpoints: dict[str, str]) -> FleetSnapshot:
    return FleetSnapshot(resources(clusters), resources(endpoints, members=True))


def request(
    type_url: str,
    names: Iterable[str] = (),
    *,
    to: pb.DiscoveryResponse | None = None,
    nack: str | None = None,
) -> bytes:
    message = pb.DiscoveryRequest(type_url=type_url, resource_names=list(names))
    message.node.id = "envoy-1"
    if to is not None:
        message.response_nonce = to.nonce
        if nack is None:
            message.version_info = to.version_info
        else:
            message.error_detail.message = nack
    return message.SerializeToString()


def responses(data: list[bytes]) -> list[pb.DiscoveryResponse]:
    return [pb.DiscoveryResponse.FromString(each) for each in data]


def only(data: list[bytes]) -> pb.DiscoveryResponse:
    (response,) = responses(data)
    return response


def contents(response: pb.DiscoveryResponse) -> set[str]:
    assert {each.type_url for each in response.resources} <= {response.type_url}
    return {each.value.decode() for each in response.resources}


ONE = snapshot({"a": "A"}, {"a": "a1"})
TWO = snapshot({"a": "A"}, {"a": "a2"})
KEYED = FleetSnapshot(ONE.clusters, ONE.endpoints, resources({"s": "a key"}))
BOTH = snapshot({"a": "A", "b": "B"}, {"a": "a1", "b": "b1"})


def connected(first: FleetSnapshot = ONE) -> tuple[AdsStream, pb.DiscoveryResponse]:
    """A stream whose Envoy has accepted everything; with its last response of endpoints."""
    stream = AdsStream()
    stream.publish(first)
    clusters = only(stream.receive(request(CLUSTER_TYPE)))
    assert stream.receive(request(CLUSTER_TYPE, to=clusters)) == []
    names = sorted(first.endpoints.by_name)
    endpoints = only(stream.receive(request(ENDPOINT_TYPE, names)))
    assert stream.receive(request(ENDPOINT_TYPE, names, to=endpoints)) == []
    return stream, endpoints


def test_a_new_stream_is_told_what_it_asks_for() -> None:
    """Clusters whole, endpoints by name; what is asked for has the snapshot's version."""
    stream = AdsStream()
    assert stream.publish(BOTH) == [], "nobody has asked"
    clusters = only(stream.receive(request(CLUSTER_TYPE)))
    assert (contents(clusters), clusters.version_info) == ({"A", "B"}, BOTH.clusters.version)
    endpoints = only(stream.receive(request(ENDPOINT_TYPE, ["b"])))
    assert (contents(endpoints), endpoints.version_info) == ({"b1"}, BOTH.endpoints.version)
    assert clusters.nonce != endpoints.nonce
    assert stream.node == "envoy-1"


def test_requests_may_come_before_the_first_snapshot() -> None:
    """They are answered with it, clusters first."""
    stream = AdsStream()
    assert stream.receive(request(SECRET_TYPE, ["s"])) == []
    assert stream.receive(request(ENDPOINT_TYPE, ["a"])) == []
    assert stream.receive(request(CLUSTER_TYPE)) == []
    assert [each.type_url for each in responses(stream.publish(KEYED))] == list(TYPES)


def test_a_new_key_is_pushed_alone_and_after_clusters_again(caplog: pytest.LogCaptureFixture) -> None:
    """Envoy warms what changes, and waits for the key that it may not ask for again."""
    stream, _ = connected(ONE)
    assert stream.receive(request(SECRET_TYPE, ["s"])) == [], "there is none"
    key = only(stream.publish(KEYED))
    assert (key.type_url, contents(key)) == (SECRET_TYPE, {"a key"})
    assert stream.receive(request(SECRET_TYPE, ["s"], to=key)) == []
    newer = FleetSnapshot(KEYED.clusters, KEYED.endpoints, resources({"s": "another"}))
    key = only(stream.publish(newer))
    assert contents(key) == {"another"}
    assert stream.receive(request(SECRET_TYPE, ["s"], to=key)) == []
    changed = FleetSnapshot(BOTH.clusters, ONE.endpoints, newer.secrets)
    sent = responses(stream.publish(changed))
    assert [each.type_url for each in sent] == list(TYPES)
    assert stream.receive(request(SECRET_TYPE, ["s"], to=sent[2], nack="sk-the-key is no key")) == []
    assert "sk-the-key" not in caplog.text, "Envoy's reason may hold it"
    assert "refused sds" in caplog.text


def test_only_what_changed_is_pushed() -> None:
    """Not the other type, not the other pool, and nothing when nothing changed."""
    stream, _ = connected(BOTH)
    assert stream.publish(snapshot({"a": "A", "b": "B"}, {"a": "a1", "b": "b1"})) == []
    pushed = only(stream.publish(snapshot({"a": "A", "b": "B"}, {"a": "a1", "b": "b2"})))
    assert (pushed.type_url, contents(pushed)) == (ENDPOINT_TYPE, {"b2"})


def test_a_new_pool_is_made_before_it_is_used() -> None:
    """Its cluster first; its endpoints when Envoy asks; both accepted before it is known."""
    stream, _ = connected(ONE)
    clusters, again = responses(stream.publish(BOTH))
    assert (clusters.type_url, contents(clusters)) == (CLUSTER_TYPE, {"A", "B"})
    # A changed cluster warms until it hears of its endpoints, which Envoy may not ask for again.
    assert (again.type_url, contents(again)) == (ENDPOINT_TYPE, {"a1"})
    assert stream.receive(request(CLUSTER_TYPE, to=clusters)) == []
    endpoints = only(stream.receive(request(ENDPOINT_TYPE, ["a", "b"], to=again)))
    assert contents(endpoints) == {"b1"}
    assert stream.known == {("a", "a1")}
    stream.receive(request(ENDPOINT_TYPE, ["a", "b"], to=endpoints))
    assert stream.known == {("a", "a1"), ("b", "b1")}


def test_a_pool_goes_cluster_first() -> None:
    """Its endpoints are told to nobody any more, and forgotten when Envoy lets go of them."""
    stream, _ = connected(BOTH)
    clusters, again = responses(stream.publish(ONE))
    assert (contents(clusters), contents(again)) == ({"A"}, {"a1"})
    assert stream.receive(request(ENDPOINT_TYPE, ["a"], to=again)) == []
    assert stream.known == {("a", "a1")}


def test_a_pool_that_comes_back_is_told_again() -> None:
    """Envoy has forgotten what it unsubscribed from, though it accepted the same once."""
    stream, endpoints = connected(BOTH)
    assert stream.receive(request(ENDPOINT_TYPE, ["a"], to=endpoints)) == []
    assert contents(only(stream.receive(request(ENDPOINT_TYPE, ["a", "b"], to=endpoints)))) == {"b1"}


def test_a_repeated_request_is_not_answered_again() -> None:
    """Or an Envoy and a server would talk for ever."""
    stream, endpoints = connected(ONE)
    assert stream.receive(request(ENDPOINT_TYPE, ["a"], to=endpoints)) == []
    assert stream.counts["acks"] == 2, "an answer counts once"


def test_names_asked_for_before_they_exist_are_told_when_they_do() -> None:
    """And no empty response is sent meanwhile."""
    stream, endpoints = connected(ONE)
    assert stream.receive(request(ENDPOINT_TYPE, ["a", "b"], to=endpoints)) == []
    _, pushed = responses(stream.publish(BOTH))
    assert contents(pushed) == {"a1", "b1"}


def test_a_refusal_keeps_the_last_good(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its reason and counted, and the refused is not sent again, whatever else comes."""
    stream, _ = connected(ONE)
    bad = only(stream.publish(TWO))
    reason = "the whole resource " * 100 + "the reason"
    assert stream.receive(request(ENDPOINT_TYPE, ["a"], to=bad, nack=reason)) == []
    assert stream.known == {("a", "a1")}
    assert stream.held_version == ONE.endpoints.version
    assert stream.counts["nacks"] == stream.counts["nacks.eds"] == 1
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "the reason" in record.getMessage()
    assert "envoy-1" in record.getMessage()
    assert len(record.getMessage()) < 1000
    assert stream.publish(TWO) == []
    assert stream.receive(request(ENDPOINT_TYPE, ["a"], to=bad)) == []
    # Envoy may have taken parts of what it refused, so the last good is told again.
    assert contents(only(stream.publish(ONE))) == {"a1"}


def test_a_refused_cluster_is_not_sent_again() -> None:
    """Endpoints flow meanwhile; other clusters, or the last good ones, are sent."""
    stream, _ = connected(ONE)
    bad, again = responses(stream.publish(snapshot({"a": "BAD"}, {"a": "a1"})))
    stream.receive(request(ENDPOINT_TYPE, ["a"], to=again))
    assert stream.receive(request(CLUSTER_TYPE, to=bad, nack="no")) == []
    pushed = only(stream.publish(snapshot({"a": "BAD"}, {"a": "a2"})))
    assert pushed.type_url == ENDPOINT_TYPE
    clusters = responses(stream.publish(ONE))[0]
    assert contents(clusters) == {"A"}


def test_one_bad_pool_does_not_stop_the_others() -> None:
    """What was refused together is sent one by one."""
    stream, _ = connected(BOTH)
    pushed = only(stream.publish(snapshot({"a": "A", "b": "B"}, {"a": "BAD", "b": "b2"})))
    assert contents(pushed) == {"BAD", "b2"}
    alone = only(stream.receive(request(ENDPOINT_TYPE, ["a", "b"], to=pushed, nack="no")))
    assert contents(alone) == {"BAD"}
    other = only(stream.receive(request(ENDPOINT_TYPE, ["a", "b"], to=alone, nack="no")))
    assert contents(other) == {"b2"}
    assert stream.receive(request(ENDPOINT_TYPE, ["a", "b"], to=other)) == []
    assert stream.known == {("a", "a1"), ("b", "b2")}
    assert stream.held_version == other.version_info


def test_a_stale_nonce_changes_nothing() -> None:
    """Neither the subscription nor what is accepted: the answer to the last response is on its way."""
    stream, old = connected(ONE)
    new = only(stream.publish(TWO))
    assert stream.receive(request(ENDPOINT_TYPE, ["a", "b"], to=old)) == []
    assert stream.receive(request(ENDPOINT_TYPE, ["b"], to=old, nack="no")) == []
    assert stream.receive(request(ENDPOINT_TYPE, ["b"])) == []
    assert (stream.counts["stale"], stream.counts["nacks"]) == (3, 0)
    assert stream.known == {("a", "a1")}
    stream.receive(request(ENDPOINT_TYPE, ["a"], to=new))
    assert stream.known == {("a", "a2")}


def test_names_may_grow_before_the_first_response() -> None:
    """Requests without a nonce are in order as long as nothing was sent."""
    stream = AdsStream()
    stream.receive(request(ENDPOINT_TYPE, ["a"]))
    stream.receive(request(ENDPOINT_TYPE, ["a", "b"]))
    assert contents(only(stream.publish(BOTH))) == {"a1", "b1"}


def test_a_slow_envoy_gets_the_newest_state_alone() -> None:
    """One response of a type is under way; what came meanwhile is one more."""
    stream, _ = connected(ONE)
    first = only(stream.publish(TWO))
    for i in range(100):
        assert stream.publish(snapshot({"a": "A"}, {"a": f"a{i}"})) == []
    assert contents(only(stream.receive(request(ENDPOINT_TYPE, ["a"], to=first)))) == {"a99"}


def test_a_change_that_is_undone_meanwhile_is_not_sent() -> None:
    """And the version that Envoy has is then the newest's, since it has the same."""
    stream, _ = connected(ONE)
    pushed = only(stream.publish(TWO))
    stream.publish(ONE)
    stream.publish(TWO)
    assert stream.receive(request(ENDPOINT_TYPE, ["a"], to=pushed)) == []
    wider = snapshot({"a": "A"}, {"a": "a2", "b": "not asked for"})
    assert stream.publish(wider) == []
    assert stream.held_version == wider.endpoints.version


def test_a_new_stream_is_told_everything_again() -> None:
    """What the Envoy says it has is of another stream, and may be of other names; nothing is assumed."""
    stream = AdsStream()
    stream.publish(ONE)
    old = pb.DiscoveryResponse(nonce="77", version_info=ONE.endpoints.version)
    assert stream.known is None
    assert contents(only(stream.receive(request(ENDPOINT_TYPE, ["a"], to=old)))) == {"a1"}
    assert contents(only(stream.receive(request(CLUSTER_TYPE, to=old)))) == {"A"}


def test_unknown_types_are_met_with_silence() -> None:
    """An Envoy may ask for what we do not have."""
    stream = AdsStream()
    stream.publish(ONE)
    for _ in range(100):
        assert stream.receive(request("type.googleapis.com/envoy.config.route.v3.RouteConfiguration")) == []
    assert stream.counts["unknown_type"] == 100
    assert not stream._subscriptions


@pytest.mark.parametrize("names", [["a"], ["*"], ["*", "a"], []])
def test_clusters_by_name_or_all(names: list[str]) -> None:
    """Both ways of asking for all of them."""
    stream = AdsStream()
    stream.publish(BOTH)
    expected = {"A"} if names == ["a"] else {"A", "B"}
    assert contents(only(stream.receive(request(CLUSTER_TYPE, names)))) == expected


def test_having_no_clusters_is_told_too() -> None:
    """A starting Envoy waits for an answer; and the last cluster can be taken away."""
    stream = AdsStream()
    stream.publish(snapshot({}, {}))
    empty = only(stream.receive(request(CLUSTER_TYPE)))
    assert contents(empty) == set()
    stream.receive(request(CLUSTER_TYPE, to=empty))
    one = only(stream.publish(ONE))
    assert contents(one) == {"A"}
    stream.receive(request(CLUSTER_TYPE, to=one))
    assert contents(only(stream.publish(snapshot({}, {})))) == set()


@pytest.mark.parametrize(
    "data",
    [b"\xff", request(ENDPOINT_TYPE, [str(i) for i in range(NAMES_MAX + 1)])],
    ids=["rubbish", "names"],
)
def test_who_does_not_speak_ads_is_told_so(data: bytes) -> None:
    """The stream is to be ended."""
    with pytest.raises(RemoteProtocolError):
        AdsStream().receive(data)


class Client:
    """Envoy's side: holds what it accepted, asks for the endpoints of its clusters, refuses BAD."""

    def __init__(self) -> None:
        self.clusters: dict[str, str] = {}
        self.endpoints: dict[str, str] = {}
        self.last: dict[str, pb.DiscoveryResponse] = {}

    def hello(self, type_url: str) -> bytes:
        return request(type_url, self.names(type_url))

    def names(self, type_url: str) -> list[str]:
        return sorted(self.clusters) if type_url == ENDPOINT_TYPE else []

    def take(self, response: pb.DiscoveryResponse) -> list[bytes]:
        type_url = response.type_url
        told = dict(each.value.decode().split("=") for each in response.resources)
        previous = self.last.get(ENDPOINT_TYPE)
        self.last[type_url] = response
        if "BAD" in told.values():
            return [request(type_url, self.names(type_url), to=response, nack="BAD")]
        if type_url == ENDPOINT_TYPE:
            self.endpoints |= {name: text for name, text in told.items() if name in self.clusters}
            return [request(type_url, self.names(type_url), to=response)]
        answers = [request(type_url, to=response)]
        # A changed cluster warms: its endpoints are to be heard again.
        changed = {name for name in told if self.clusters.get(name) != told[name]}
        self.endpoints = {n: e for n, e in self.endpoints.items() if n in told and n not in changed}
        if set(told) != set(self.clusters):
            self.clusters = told
            answers.append(request(ENDPOINT_TYPE, self.names(ENDPOINT_TYPE), to=previous))
        self.clusters = told
        return answers


class Convergence(RuleBasedStateMachine):
    """Whatever is published while messages are under way, a client that answers ends with the newest."""

    def __init__(self) -> None:
        super().__init__()
        self.newest: dict[str, tuple[str, str]] = {}
        self.connect()

    @rule()
    def connect(self) -> None:
        """The stream breaks: messages under way are lost, the client keeps what it has."""
        kept = getattr(self, "client", Client())
        self.client = Client()
        self.client.clusters, self.client.endpoints = kept.clusters, kept.endpoints
        self.stream = AdsStream()
        self.down: list[bytes] = self.stream.publish(self.snapshot())
        self.up = [self.client.hello(CLUSTER_TYPE)]
        if self.client.clusters:
            self.up.append(self.client.hello(ENDPOINT_TYPE))

    def snapshot(self) -> FleetSnapshot:
        clusters = {name: f"{name}={cluster}" for name, (cluster, _) in self.newest.items()}
        endpoints = {name: f"{name}={endpoint}" for name, (_, endpoint) in self.newest.items()}
        return snapshot(clusters, endpoints)

    texts = st.sampled_from(["1", "2", "3"])

    @rule(
        pools=st.dictionaries(
            st.sampled_from("abc"),
            st.tuples(st.sampled_from(["1", "2", "BAD"]), st.sampled_from(["1", "2", "BAD"])),
        )
    )
    def publish(self, pools: dict[str, tuple[str, str]]) -> None:
        """Any state follows any other."""
        self.newest = pools
        self.down += self.stream.publish(self.snapshot())

    @precondition(lambda self: self.up)
    @rule()
    def server_reads(self) -> None:
        """One request arrives."""
        self.down += self.stream.receive(self.up.pop(0))

    @precondition(lambda self: self.down)
    @rule()
    def client_reads(self) -> None:
        """One response arrives."""
        self.up += self.client.take(pb.DiscoveryResponse.FromString(self.down.pop(0)))

    @invariant()
    def nothing_queues(self) -> None:
        """One response of a type under way at most."""
        kinds = [each.type_url for each in responses(self.down)]
        assert len(kinds) == len(set(kinds))

    @rule()
    def settle(self) -> None:
        """With nothing more published all talk ends, and all that is not BAD has arrived."""
        for _ in range(60):
            if self.up:
                self.server_reads()
            elif self.down:
                self.client_reads()
        assert not self.up
        assert not self.down
        if any(cluster == "BAD" for cluster, _ in self.newest.values()):
            return  # clusters are accepted or refused as a whole
        assert self.client.clusters == {name: cluster for name, (cluster, _) in self.newest.items()}
        for name, (_, endpoint) in self.newest.items():
            if endpoint != "BAD":
                assert self.client.endpoints[name] == endpoint
                assert self.stream.known is not None
                assert (name, f"{name}={endpoint}") in self.stream.known
        if all(endpoint != "BAD" for _, endpoint in self.newest.values()) and self.newest:
            assert self.stream.held_version == self.snapshot().endpoints.version

    def teardown(self) -> None:
        """Every run ends settled."""
        self.settle()


Convergence.TestCase.settings = examples(60, steps=25)
TestConvergence = Convergence.TestCase
