"""Sources of members, united."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.discovery.member import MEMBERS_MAX, DiscoveredMember
from extproc.discovery.merge import PRECEDENCE, Conflict, Membership, merge

A, B = "10.0.0.1:80", "10.0.0.2:80"


def test_a_member_leaves_when_no_source_lists_it() -> None:
    """Not before."""
    pools = Membership(["chat"])
    assert pools.update("chat", "static", [DiscoveredMember(A)]) == {"chat"}
    assert pools.update("chat", "dns", [DiscoveredMember(A), DiscoveredMember(B)]) == {"chat"}
    assert pools.members["chat"] == (DiscoveredMember(A), DiscoveredMember(B))
    assert pools.update("chat", "static", []) == frozenset(), "dns lists it"
    assert pools.update("chat", "dns", [DiscoveredMember(B)]) == {"chat"}
    assert pools.members["chat"] == (DiscoveredMember(B),)


def test_the_strongest_source_has_the_word() -> None:
    """Static before file before DNS before agent before picker, in whichever order they speak."""
    for order in (PRECEDENCE, PRECEDENCE[::-1]):
        pools = Membership(["chat"])
        for source in order:
            pools.update("chat", source, [DiscoveredMember(A, zone=source, max_concurrent=len(source))])
        for i, source in enumerate(PRECEDENCE):
            assert pools.members["chat"] == (DiscoveredMember(A, zone=source, max_concurrent=len(source)),)
            pools.update("chat", source, [])
            assert bool(pools.members["chat"]) == (i < len(PRECEDENCE) - 1)


def test_a_weaker_source_fills_what_a_stronger_one_does_not_say() -> None:
    """A place comes from one source as a whole, since a zone is part of its region."""
    pools = Membership(["chat"])
    pools.update("chat", "agent", [DiscoveredMember(A, "a", "eu", 64)])
    pools.update("chat", "dns", [DiscoveredMember(A)])
    assert pools.members["chat"] == (DiscoveredMember(A, "a", "eu", 64),)
    pools.update("chat", "file", [DiscoveredMember(A, zone="b")])
    assert pools.members["chat"] == (DiscoveredMember(A, "b", "", 64),)


def test_an_address_stands_in_one_pool() -> None:
    """The stronger source's, or the first pool's; the other is told of, and has it when it is free."""
    pools = Membership(["chat", "code"])
    pools.update("chat", "dns", [DiscoveredMember(A), DiscoveredMember(B)])
    assert pools.update("code", "file", [DiscoveredMember(A)]) == {"chat", "code"}
    assert pools.members == {"chat": (DiscoveredMember(B),), "code": (DiscoveredMember(A),)}
    assert pools.conflicts == (Conflict(A, "chat", "dns", "code"),)
    pools.update("code", "dns", [DiscoveredMember(B)])
    assert Conflict(B, "code", "dns", "chat") in pools.conflicts
    assert pools.update("code", "file", []) == {"chat", "code"}
    assert pools.members == {"chat": (DiscoveredMember(A), DiscoveredMember(B)), "code": ()}


def test_a_pool_has_a_bound() -> None:
    """The weakest source's last members are left out, and counted."""
    many = [DiscoveredMember(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:80") for i in range(MEMBERS_MAX)]
    pools = Membership(["chat"])
    pools.update("chat", "dns", [DiscoveredMember(A, "weak"), *many])
    pools.update("chat", "static", [DiscoveredMember("192.0.2.1:80")])
    assert len(pools.members["chat"]) == MEMBERS_MAX
    assert pools.members["chat"][0] == DiscoveredMember("192.0.2.1:80")
    assert pools.left_out == {"chat": 2 if DiscoveredMember(A) not in many else 1}


members = st.lists(
    st.builds(
        DiscoveredMember,
        st.integers(1, 6).map(lambda i: f"10.0.0.{i}:80"),
        st.sampled_from(["", "a"]),
        st.sampled_from(["", "eu"]),
        st.sampled_from([None, 64]),
    ),
    max_size=6,
    unique_by=lambda member: member.address,
).map(tuple)
said = st.fixed_dictionaries(
    {pool: st.dictionaries(st.sampled_from(PRECEDENCE), members) for pool in ("chat", "code")}
)


@given(said)
def test_the_union_is_whole_and_has_each_address_once(
    said: dict[str, dict[str, tuple[DiscoveredMember, ...]]],
) -> None:
    """Nothing is lost, nothing is made up, nothing stands twice."""
    merged, conflicts, _ = merge(said)
    listed = {(pool, m.address) for pool, sources in said.items() for ms in sources.values() for m in ms}
    got = [(pool, member.address) for pool, members in merged.items() for member in members]
    addresses = [address for _, address in got]
    assert len(addresses) == len(set(addresses))
    assert set(addresses) == {address for _, address in listed}
    assert listed - set(got) == {(conflict.pool, conflict.address) for conflict in conflicts}
