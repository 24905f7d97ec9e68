"""Fleets are read from names and short forms, and scaled without losing their mix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.sim.world import FleetError, parse_fleet
from extproc.sim.world.fleets import NAMED, describe


@pytest.mark.parametrize("name", NAMED)
def test_named_fleets_have_eight_replicas(name: str) -> None:
    """All named fleets are of one size, with an address each."""
    addresses = [address for address, _ in parse_fleet(name).replicas]
    assert len(set(addresses)) == 8


def test_the_short_form() -> None:
    """Counts, hardware and settings are read; price and card follow the hardware."""
    fleet = parse_fleet("2*a100-80g/llama-3-8b,h100-80g/llama-3-8b:slowdown=3:permits=64:spot=true")
    assert [group.count for group in fleet.groups] == [2, 1]
    assert fleet.groups[1].slowdown == 3.0
    members = fleet.members()
    assert [member.max_concurrent for member in members] == [128, 128, 64]
    assert members[2].price_per_hour == pytest.approx(3.5 * 0.35)
    assert describe(fleet) == [
        "2 × a100-80g/llama-3-8b",
        "1 × h100-80g/llama-3-8b, 3× slower, permits 64, spot true",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("x*a100-80g/llama-3-8b", "no number of replicas"),
        ("2*nothing", "unknown hardware"),
        ("2*a100-80g/llama-3-8b:colour=red", "unknown setting"),
        ("2*a100-80g/llama-3-8b:permits=some", "is no int"),
        ("2*a100-80g/llama-3-8b:slowdown=0", "must be positive"),
        ("1001*a100-80g/llama-3-8b", "at most"),
    ],
)
def test_mistakes_name_the_part(text: str, said: str) -> None:
    """A fleet that cannot be read says which part is wrong."""
    with pytest.raises(FleetError, match=said):
        parse_fleet(text)


@given(st.sampled_from(sorted(NAMED)), st.integers(2, 1000))
def test_scaling_keeps_the_mix(name: str, replicas: int) -> None:
    """So many in all, every group at least once, each within one of its share."""
    fleet = parse_fleet(name)
    scaled = fleet.scaled(replicas)
    assert len(scaled.replicas) == replicas
    for group, own in zip(scaled.groups, fleet.groups, strict=True):
        assert group.count >= 1
        assert abs(group.count - own.count * replicas / 8) < 1 or group.count == 1


def test_too_few_to_scale_to() -> None:
    """A mix of two kinds needs two replicas."""
    with pytest.raises(FleetError, match="cannot have 1 replicas"):
        parse_fleet("8b-mixed").scaled(1)
