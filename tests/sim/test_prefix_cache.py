from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.sim.prefix_cache import PrefixCache
from tests.stand.examples import examples


def test_a_prefix_of_what_was_inserted_matches() -> None:
    """Branches share their common blocks."""
    cache = PrefixCache(block_tokens=4)
    assert cache.insert("abcd") == 4
    assert cache.insert("abxy") == 2
    assert cache.insert("ab") == 0
    assert [cache.match(word) for word in ("abcd", "abx", "abz", "b", "")] == [4, 3, 2, 0, 0]
    assert cache.used_tokens == 6 * 4


def test_the_least_recently_used_leaf_goes_first_from_its_tail() -> None:
    """A touched branch outlives one that was not, and heads outlive tails."""
    cache = PrefixCache(block_tokens=1)
    cache.insert("abcd")
    cache.insert("abxy")
    cache.release(cache.acquire("abcd"))
    assert cache.evict(1) == 1
    assert cache.match("abxy") == 3
    assert cache.evict(1) == 1
    assert (cache.match("abxy"), cache.match("abcd")) == (2, 4)
    assert cache.evict(99) == 4
    assert cache.used_tokens == 0


def test_a_lease_pins_exactly_its_prefix() -> None:
    """What is behind the leased blocks may go, they may not."""
    cache = PrefixCache(block_tokens=1)
    cache.insert("abcdef")
    lease = cache.acquire("abcx")
    assert lease.blocks == 3
    assert cache.evict(99) == 3
    assert cache.match("abcdef") == 3
    cache.release(lease)
    assert cache.evict(99) == 3


def test_a_lease_is_released_once() -> None:
    """A double release is a bug of the caller and says so."""
    cache = PrefixCache(block_tokens=1)
    cache.insert("ab")
    lease = cache.acquire("ab")
    cache.release(lease)
    with pytest.raises(RuntimeError, match="twice"):
        cache.release(lease)


def test_a_hot_prefix_does_not_grow_the_eviction_heap() -> None:
    """Every use leaves a stale entry; they are swept before they pile up."""
    cache = PrefixCache(block_tokens=1)
    cache.insert("ab")
    for _ in range(10_000):
        cache.release(cache.acquire("ab"))
    assert len(cache._leaves) < 100


_WORDS = st.text(alphabet="ab", max_size=8)


@examples(120)
@given(st.lists(st.tuples(st.sampled_from(["insert", "acquire", "release", "evict"]), _WORDS), max_size=40))
def test_the_trie_agrees_with_a_set_of_prefixes(steps: list[tuple[str, str]]) -> None:
    """Against a plain set: same contents size, prefix closed, pinned prefixes survive every eviction."""
    cache = PrefixCache(block_tokens=1)
    model: set[str] = set()
    leases = []
    for action, word in steps:
        if action == "insert":
            new = {word[: at + 1] for at in range(len(word))} - model
            assert cache.insert(word) == len(new)
            model |= new
        elif action == "acquire":
            lease = cache.acquire(word)
            assert lease.blocks == max((at for at in range(len(word) + 1) if word[:at] in model), default=0)
            leases.append((lease, word[: lease.blocks]))
        elif action == "release" and leases:
            cache.release(leases.pop()[0])
        elif action == "evict":
            wanted = len(word)
            went = cache.evict(wanted)
            model = {prefix for prefix in model if cache.match(prefix) == len(prefix)}
            pinned = {held[: at + 1] for _, held in leases for at in range(len(held))}
            assert pinned <= model
            assert went == wanted or model == pinned
        assert cache.used_tokens == len(model)
