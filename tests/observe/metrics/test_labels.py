from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from extproc.observe.metrics.labels import NOBODY, OTHER, WEIGHT_MAX, Heavy, Labels, Tenants


def test_the_first_names_have_a_value_of_their_own() -> None:
    """Beyond the bound, and for the reserved word, there is `other`."""
    labels = Labels(2)
    assert [labels.of(name) for name in ("a", OTHER, "b", "c", "a")] == ["a", OTHER, "b", OTHER, "a"]
    assert len(labels) == 2


def test_every_tenant_is_named_where_there_are_places_for_all() -> None:
    """No place is kept when nobody can want it."""
    tenants = Tenants(3, expected=3)
    assert [tenants.of(name) for name in ("a", "b", "c")] == ["a", "b", "c"]


def test_nobody_takes_no_place() -> None:
    """Requests without a tenant, and a tenant called `other`, leave the places to the rest."""
    tenants = Tenants(1, expected=1)
    assert tenants.of("") == NOBODY
    assert tenants.of(OTHER) == OTHER
    assert tenants.of("a") == "a"


def test_a_heavy_tenant_gets_a_kept_place() -> None:
    """Half of the places go to who comes first, the others to who weighs."""
    tenants = Tenants(4, expected=100)
    assert [tenants.of(f"t{i}") for i in range(4)] == ["t0", "t1", OTHER, OTHER]
    seen = [tenants.of("big") for _ in range(60)]
    assert seen[0] == OTHER
    assert seen[-1] == "big"
    assert seen == sorted(seen, reverse=True), "once named, always named"


def test_light_tenants_take_no_kept_place() -> None:
    """A thousand equal tenants leave the kept places free, however many requests there are."""
    tenants = Tenants(100, expected=1_000)
    chance = Random(1)
    for _ in range(50_000):
        tenants.of(f"t{chance.randrange(1_000)}")
    assert len(tenants.named) == 50


def test_the_heaviest_of_a_zipf_drop_policy_are_named() -> None:
    """Of 10,000 tenants, each that has more than one in a hundred of the requests has its own series."""
    tenants, chance = Tenants(100, expected=10_000), Random(2)
    weights = [1.0 / (rank + 1) for rank in range(10_000)]
    # The light ones come first and take the first places.
    for rank in range(9_000, 9_050):
        tenants.of(f"t{rank}")
    for rank in chance.choices(range(10_000), weights, k=30_000):
        tenants.of(f"t{rank}")
    share = [weight / sum(weights) for weight in weights]
    assert {f"t{rank}" for rank in range(10_000) if share[rank] > 0.01} <= set(tenants.named)


def test_more_places_hold_at_once_and_fewer_for_new_names() -> None:
    """Who has a name keeps it: a series never ends while the process lives."""
    tenants = Tenants(2, expected=2)
    assert [tenants.of("a"), tenants.of("b")] == ["a", "b"]
    tenants.apply(1, expected=5)
    assert [tenants.of("a"), tenants.of("b"), tenants.of("c")] == ["a", "b", OTHER]
    tenants.apply(5, expected=5)
    assert tenants.of("c") == "c"


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0.1, 100.0)), max_size=300), st.integers(2, 16))
def test_counts_of_the_heavy_are_never_too_high(events: list[tuple[int, float]], most: int) -> None:
    """What is claimed of a name is at most its weight, at least its weight less the promised error."""
    heavy, true = Heavy(most), [0.0] * 31
    for who, weight in events:
        true[who] += weight
        claimed = heavy.add(str(who), weight)
        assert len(heavy) <= most
        assert claimed <= true[who] + 1e-6
        assert claimed >= true[who] - 2 * sum(true) / most - 1e-6


def test_old_weight_fades() -> None:
    """A tenant that was heavy long ago does not keep one that is heavy now from its name."""
    heavy = Heavy(8)
    for _ in range(int(WEIGHT_MAX) + 1):
        heavy.add("old", 1.0)
    assert heavy.total <= WEIGHT_MAX / 2 + 1
    own = [heavy.add("new", 1.0) for _ in range(int(WEIGHT_MAX))][-1]
    assert own > heavy.total / 2
