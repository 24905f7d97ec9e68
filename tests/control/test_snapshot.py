"""Snapshots: what Envoy reads in them, when a version changes, and what a rebuild costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from types import FrameType

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.core.v3 import HealthStatus, Locality
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.load import loads
from extproc.control.snapshot import EndpointState, FleetSnapshot, SnapshotBuilder, lb_endpoint
from tests.stand.examples import examples

CONFIG = """
gateway: {auth: none}
pools:
  - {name: chat, models: [m], endpoints: [{address: 127.0.0.1:1}]}
  - {name: code, models: [n], endpoints: [{address: 127.0.0.1:2}]}
"""

A, B, C = (
    EndpointState(f"10.0.0.{i}:8000", zone=zone, region="eu") for i, zone in ((1, "a"), (2, "b"), (3, "a"))
)


def builder(*, mark_draining: bool = False) -> SnapshotBuilder:
    return SnapshotBuilder(loads(CONFIG), mark_draining=mark_draining)


def parsed(snapshot: FleetSnapshot, pool: str = "chat") -> ClusterLoadAssignment:
    return ClusterLoadAssignment.parse(snapshot.endpoints.by_name[f"pool.{pool}"].data)


def endpoints(assignment: ClusterLoadAssignment) -> dict[str, tuple[HealthStatus, int]]:
    found = {}
    for group in assignment.endpoints:
        for each in group.lb_endpoints:
            assert each.endpoint is not None
            assert each.endpoint.address is not None
            where = each.endpoint.address.socket_address
            assert where is not None
            host = f"[{where.address}]" if ":" in where.address else where.address
            assert each.load_balancing_weight is not None
            found[f"{host}:{where.port_value}"] = (each.health_status, each.load_balancing_weight)
    return found


def test_clusters_are_told_by_ads() -> None:
    """One a pool, of type EDS over the same stream, with nothing of the static endpoints left in it."""
    snapshot = builder().build({})
    assert set(snapshot.clusters.by_name) == {"pool.chat/standard", "pool.code/standard"}
    cluster = Cluster.parse(snapshot.clusters.by_name["pool.chat/standard"].data)
    assert cluster.type == ClusterDiscoveryType.EDS
    assert cluster.load_assignment is None
    assert cluster.eds_cluster_config is not None
    source = cluster.eds_cluster_config.eds_config
    assert source is not None
    assert source.ads is not None
    assert source.initial_fetch_timeout == timedelta(seconds=5)
    assert cluster.common_lb_config is not None
    assert cluster.common_lb_config.healthy_panic_threshold is not None
    assert cluster.common_lb_config.healthy_panic_threshold.value == 0.0


def test_endpoints_stand_by_locality() -> None:
    """Regions and zones, sorted."""
    assignment = parsed(builder().build({"chat": [B, C, A]}))
    assert assignment.cluster_name == "pool.chat"
    assert [group.locality for group in assignment.endpoints] == [
        Locality(region="eu", zone="a"),
        Locality(region="eu", zone="b"),
    ]
    assert [len(group.lb_endpoints) for group in assignment.endpoints] == [2, 1]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (EndpointState("[::1]:80"), (HealthStatus.HEALTHY, 100)),
        (EndpointState("1.2.3.4:80", health=0.25), (HealthStatus.HEALTHY, 25)),
        (EndpointState("1.2.3.4:80", health=0.24), (HealthStatus.DEGRADED, 24)),
        (EndpointState("1.2.3.4:80", health=0.001), (HealthStatus.DEGRADED, 1)),
        (EndpointState("1.2.3.4:80", health=0.0), (HealthStatus.UNHEALTHY, 1)),
        (EndpointState("1.2.3.4:80", health=0.0, draining=True), (HealthStatus.DRAINING, 1)),
    ],
)
def test_health_becomes_status_and_weight(state: EndpointState, expected: tuple[HealthStatus, int]) -> None:
    """Draining before all else; weights are whole numbers from 1."""
    found = endpoints(parsed(builder(mark_draining=True).build({"chat": [state]})))
    assert found == {state.address: expected}


def test_a_draining_endpoint_is_not_there() -> None:
    """Neither for Envoy nor to be named; when it is marked it may still not be named."""
    draining = EndpointState(B.address, draining=True)
    for marked in (False, True):
        snapshot = builder(mark_draining=marked).build({"chat": [A, draining]})
        assert set(endpoints(parsed(snapshot))) == ({A.address, B.address} if marked else {A.address})
        assert snapshot.endpoints.by_name["pool.chat"].members == {("chat", A.address)}


def test_a_version_changes_with_the_content_alone() -> None:
    """Not with the order, nor with the process; the clusters' not with the endpoints."""
    first, second = builder(), builder()
    base = first.build({"chat": [A, B]})
    assert first.build({"chat": [B, A]}).endpoints.version == base.endpoints.version
    assert second.build({"chat": [A, B], "code": []}).endpoints.version == base.endpoints.version
    other = first.build({"chat": [A, B, C]})
    assert other.endpoints.version != base.endpoints.version
    assert other.clusters.version == base.clusters.version
    assert first.build({"code": [A, B]}).endpoints.version != base.endpoints.version
    assert first.build({"chat": [A, B]}).endpoints.version == base.endpoints.version


def test_mistakes_of_the_caller_are_loud() -> None:
    """An unknown pool, an address twice, a health that is none."""
    for pools in (
        {"stranger": [A]},
        {"chat": [A, A]},
        {"chat": [EndpointState("1.2.3.4:80", health=1.1)]},
    ):
        with pytest.raises(AssertionError):
            builder().build(pools)


states = st.builds(
    EndpointState,
    address=st.integers(1, 40).map(lambda i: f"10.0.0.{i}:80"),
    zone=st.sampled_from(["", "a", "b"]),
    region=st.sampled_from(["", "eu"]),
    health=st.floats(0.0, 1.0),
    draining=st.booleans(),
)
pools = st.lists(states, max_size=12, unique_by=lambda state: state.address)


@examples(40)
@given(st.lists(pools, min_size=1, max_size=6))
def test_the_cache_never_shows(sequence: list[list[EndpointState]]) -> None:
    """After any history a snapshot is what a new builder makes."""
    old, new = builder(mark_draining=True), builder(mark_draining=True)
    for each in sequence:
        got = old.build({"chat": each})
        new._built.clear()
        new._pieces.clear()
        assert got.endpoints == new.build({"chat": each}).endpoints
    assert set(endpoints(parsed(got))) == {state.address for state in each}
    assert len(old._pieces) == len(each), "the cache holds the last snapshot's endpoints and no more"


def test_one_change_among_a_thousand_costs_little() -> None:
    """Who is as before is not built again; all are by a new builder."""
    fleet = [EndpointState(f"10.0.{i // 250}.{i % 250}:80", zone="abc"[i % 3]) for i in range(1000)]
    build = builder().build
    build({"chat": fleet})
    fleet[0] = EndpointState(fleet[0].address, fleet[0].zone, health=0.5)
    assert built(lambda: build({"chat": fleet})) == 1
    assert built(lambda: builder().build({"chat": fleet})) == len(fleet)


def built(work: Callable[[], object]) -> int:
    """How many endpoints are written out meanwhile."""
    made = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal made
        made += event == "call" and frame.f_code is lb_endpoint.__code__

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return made
