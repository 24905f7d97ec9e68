"""Answers in memory: found under their own scope alone, within bounds, and not after their time."""

from __future__ import annotations

import pytest

from extproc.cache.memory import MemoryAnswers
from extproc.cache.store import ENTRY_BYTES, KeptAnswer, packed
from extproc.core.cachekeys import Usage

MIB = 1024 * 1024


def answer(body: bytes = b"hello", *, expires_ns: int = 100, tenant: str = "a", **more: str) -> KeptAnswer:
    return KeptAnswer(
        packed=packed(body),
        length=len(body),
        stream=False,
        tenant=tenant,
        model=more.get("model", "m"),
        pool=more.get("pool", "p"),
        usage=Usage(1, 2),
        made_ns=0,
        expires_ns=expires_ns,
    )


def put(store: MemoryAnswers, scope: str, key: bytes, kept: KeptAnswer, most: int = MIB) -> bool:
    return store.put(scope, key, kept, scope_bytes_max=most, now_ns=0)


def test_an_answer_is_found_under_its_own_scope_and_key() -> None:
    """And nowhere else, whatever the names look like."""
    store = MemoryAnswers(MIB)
    assert put(store, "tenant:a", b"k", answer())
    found = store.get("tenant:a", b"k", now_ns=0)
    assert found is not None
    assert found.body() == b"hello"
    for scope, key in (("tenant:b", b"k"), ("group:a", b"k"), ("tenant:", b"ak"), ("tenant:a", b"K")):
        assert store.get(scope, key, now_ns=0) is None


def test_it_is_gone_at_its_time() -> None:
    """Asked for or not; what replaced it stays until its own."""
    store = MemoryAnswers(MIB)
    put(store, "s", b"1", answer(expires_ns=10))
    put(store, "s", b"2", answer(expires_ns=10))
    put(store, "s", b"2", answer(expires_ns=30))
    assert store.get("s", b"1", now_ns=9) is not None
    assert store.get("s", b"1", now_ns=10) is None
    assert len(store) == 1
    assert store.expire(now_ns=20, most=100) == 0
    assert store.get("s", b"2", now_ns=20) is not None
    assert store.expire(now_ns=30, most=100) == 1
    assert (len(store), store.size, store.shelves) == (0, 0, {})


def test_the_least_recently_used_of_a_scope_goes_first() -> None:
    """Within the scope's own bound; a look counts as use."""
    store, size = MemoryAnswers(MIB), answer().size
    for key in (b"1", b"2"):
        assert put(store, "s", key, answer(), most=2 * size)
    assert store.get("s", b"1", now_ns=0) is not None
    assert put(store, "s", b"3", answer(), most=2 * size)
    assert [key for key in (b"1", b"2", b"3") if store.get("s", key, now_ns=0)] == [b"1", b"3"]
    assert store.evicted == 1


def test_who_has_most_gives_way_at_the_common_bound() -> None:
    """A tenant that fills the cache costs the others nothing."""
    size = answer().size
    store = MemoryAnswers(10 * size)
    assert put(store, "small", b"1", answer())
    for i in range(50):
        assert put(store, "large", b"%d" % i, answer(b"%05d" % i))
    assert store.get("small", b"1", now_ns=0) is not None
    assert store.size <= store.bytes_max
    assert len(store.shelves["large"].answers) >= 8


def test_what_is_larger_than_all_is_not_kept() -> None:
    """Neither above its scope's bound nor above the common one; nothing goes for it."""
    store = MemoryAnswers(ENTRY_BYTES + 100)
    assert put(store, "s", b"1", answer())
    assert not put(store, "s", b"2", answer(), most=ENTRY_BYTES)
    big = bytes(i * 7 % 251 for i in range(5_000))
    assert not put(store, "s", b"2", answer(big))
    assert store.get("s", b"1", now_ns=0) is not None


def test_a_purge_takes_what_is_unwanted() -> None:
    """And nothing else; the sizes follow."""
    store = MemoryAnswers(MIB)
    for i in range(20):
        put(store, f"s{i % 2}", b"%d" % i, answer(tenant=f"t{i % 4}"))
    assert store.purge(lambda scope, _, kept: scope == "s0" and kept.tenant == "t2") == 5
    assert len(store) == 15
    assert store.size == sum(shelf.size for shelf in store.shelves.values()) == 15 * answer().size
    assert store.drop("s1", b"1")
    assert not store.drop("s1", b"1")


def test_times_of_what_is_gone_are_forgotten() -> None:
    """Answers that are made anew again and again leave nothing behind."""
    store = MemoryAnswers(MIB)
    for i in range(20_000):
        put(store, "s", b"1", answer(expires_ns=1_000_000 + i))
    assert len(store._times) < 2_000


@pytest.mark.parametrize("damage", ["short", "long", "other", "bomb"])
def test_what_is_not_what_was_packed_is_refused(damage: str) -> None:
    """Cut, lengthened, changed, or far larger than it says; no more is unpacked than was packed."""
    kept = answer(b"hello hello hello")
    match damage:
        case "short":
            kept.packed = kept.packed[:-3]
        case "long":
            kept.length += 1
        case "other":
            kept.packed = kept.packed[:-1] + bytes([kept.packed[-1] ^ 1])
        case _:
            kept.packed = packed(bytes(10_000_000))
    with pytest.raises(ValueError, match="a kept answer"):
        kept.body()
