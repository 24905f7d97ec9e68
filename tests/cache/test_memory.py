"""Answers in memory: the common bound, their times, and what is not what was packed.

What each store promises is test_store_contract.py's.
"""

from __future__ import annotations

import pytest

from extproc.cache.memory import MemoryAnswers
from extproc.cache.store import ENTRY_BYTES, Absent, KeptAnswer, packed
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
    return store.put(scope, key, kept, scope_bytes_max=most, now_ns=0) == "kept"


def test_it_is_gone_at_its_time() -> None:
    """Asked for or not; what replaced it stays until its own."""
    store = MemoryAnswers(MIB)
    put(store, "s", b"1", answer(expires_ns=10))
    put(store, "s", b"2", answer(expires_ns=10))
    put(store, "s", b"2", answer(expires_ns=30))
    assert isinstance(store.get("s", b"1", now_ns=9), KeptAnswer)
    assert store.get("s", b"1", now_ns=10) is Absent.MISS
    assert len(store) == 1
    assert store.expire(now_ns=20, most=100) == 0
    assert isinstance(store.get("s", b"2", now_ns=20), KeptAnswer)
    assert store.expire(now_ns=30, most=100) == 1
    assert (len(store), store.size, store.shelves) == (0, 0, {})


def test_who_has_most_gives_way_at_the_common_bound() -> None:
    """A tenant that fills the cache costs the others nothing."""
    size = answer().size
    store = MemoryAnswers(10 * size)
    assert put(store, "small", b"1", answer())
    for i in range(50):
        assert put(store, "large", b"%d" % i, answer(b"%05d" % i))
    assert isinstance(store.get("small", b"1", now_ns=0), KeptAnswer)
    assert store.size <= store.bytes_max
    assert len(store.shelves["large"].answers) >= 8


def test_what_is_larger_than_all_is_not_kept() -> None:
    """Neither above its scope's bound nor above the common one; nothing goes for it."""
    store = MemoryAnswers(ENTRY_BYTES + 100)
    assert put(store, "s", b"1", answer())
    assert not put(store, "s", b"2", answer(), most=ENTRY_BYTES)
    big = bytes(i * 7 % 251 for i in range(5_000))
    assert not put(store, "s", b"2", answer(big))
    assert isinstance(store.get("s", b"1", now_ns=0), KeptAnswer)


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
