from __future__ import annotations

import pytest

from extproc.core.prefix import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    BLOCKS_MAX,
    MESSAGE_MARK,
    PrefixIndex,
    chain,
    chain_ids,
)

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
USER = MESSAGE_MARK + b'"user"'


def test_only_full_blocks_are_hashed() -> None:
    """A block more for each BLOCK_BYTES, the boundary byte included, in UTF-8."""
    assert chain(()) == chain(("",)) == chain(("a" * (BLOCK_BYTES - 2),)) == ()
    assert len(chain(("a" * (BLOCK_BYTES - 1),))) == 1
    assert len(chain(("é" * BLOCK_BYTES,))) == 2
    assert len(chain(("a" * 10 * BLOCK_BYTES,), (USER,))) == 10


def test_each_hash_covers_all_before_it() -> None:
    """A change changes its own block and all later ones, none before it; equal blocks differ by place."""
    text = "a" * 5 * BLOCK_BYTES
    changed = text[: 2 * BLOCK_BYTES + 7] + "b" + text[2 * BLOCK_BYTES + 8 :]
    first, second = chain((text,)), chain((changed,))
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, False, False, False]
    assert len(set(first)) == 5


def test_hashes_are_the_same_in_every_process() -> None:
    """Services that share what they know must agree; these are xxh3's values, not Python's."""
    assert chain(("a" * BLOCK_BYTES * 2,), (USER,)) == (17368540558340846207, 344170865836314551)
    assert chain_ids(bytes(BLOCK_BYTES)) == (2257800164200616848,)


def test_text_cannot_pass_for_a_boundary() -> None:
    """Neither the boundary's code points nor lone surrogates become its bytes."""
    tail = "x" * BLOCK_BYTES
    two = chain(("a", tail), (USER, USER))
    for forged in ("\xff", "\udcff", "\ufffd", ""):
        for end in ("\xfe", "\udcfe", ""):
            assert chain((f'a{forged}"user"{end}{tail}',), (USER,))[0] != two[0]


def test_a_mark_less_goes_on() -> None:
    """Segments without marks go on where the last one ended, still distinct from one text."""
    tail = "x" * BLOCK_BYTES
    assert chain(("a", tail)) == chain(("a", tail), (b"", b"")) == chain(("a", tail), (b"",))
    assert chain(("a", tail)) != chain(("a" + tail,))


def test_the_blocks_are_bounded() -> None:
    """A longer prompt has the hashes of its beginning."""
    text = "a" * BLOCK_BYTES * (BLOCKS_MAX + 10)
    assert len(chain((text,))) == BLOCKS_MAX
    assert chain((text[: BLOCK_BYTES * (BLOCKS_MAX + 1)],)) == chain((text,))
    assert len(chain_ids(bytes(4 * BLOCK_TOKENS * (BLOCKS_MAX + 1)))) == BLOCKS_MAX


def test_ids_are_not_text() -> None:
    """The same bytes as ids and as text are two prompts."""
    text = "a" * BLOCK_BYTES
    assert chain_ids(b"\xfe" + text.encode())[0] != chain((text,))[0]


def test_match_says_how_much_each_holds() -> None:
    """Leading blocks by address; who holds none is left out."""
    index = PrefixIndex()
    index.insert(A, (1, 2, 3), capacity_blocks=10)
    index.insert(B, (1, 2, 9), capacity_blocks=10)
    index.insert(C, (7,), capacity_blocks=10)
    assert index.match((1, 2, 3, 4)) == {A: 3, B: 2}
    assert index.match((1,)) == {A: 1, B: 1}
    assert index.match((5, 1)) == index.match(()) == {}


@pytest.mark.parametrize("count", [1, 31, 32, 33, 40, 300])
def test_match_over_many_endpoints(count: int) -> None:
    """Few or many in one answer, side by side or far apart, each is named once and rightly."""
    index = PrefixIndex()
    prefix = tuple(range(1, 101))
    depths = {f"10.0.0.{i}:80": 3 if i % 5 else 1 + i % 100 for i in range(count)}
    for address, depth in depths.items():
        index.insert(address, prefix[:depth], capacity_blocks=100)
    assert index.match(prefix) == depths
    for address in list(depths)[: count * 9 // 10]:
        index.forget(address)
        del depths[address]
    assert index.match(prefix) == depths


def test_the_least_recently_used_tail_leaves_first() -> None:
    """Using a prefix keeps it; of the others the end goes before the beginning."""
    index = PrefixIndex()
    index.insert(A, (1, 2, 3), capacity_blocks=6)
    index.insert(A, (1, 8, 9), capacity_blocks=6)
    index.insert(A, (1, 2), capacity_blocks=6)
    assert index.blocks(A) == 5
    index.insert(A, (4, 5), capacity_blocks=6)  # 7 blocks: 3 was used longest ago
    assert index.match((1, 2, 3)) == {A: 2}
    index.insert(A, (6,), capacity_blocks=6)
    assert index.match((1, 8, 9)) == {A: 2}
    assert index.blocks(A) == 6


def test_a_prefix_longer_than_the_capacity() -> None:
    """Its beginning is held, nothing else."""
    index = PrefixIndex()
    index.insert(A, (7, 8), capacity_blocks=3)
    index.insert(A, (1, 2, 3, 4, 5), capacity_blocks=3)
    assert index.match((1, 2, 3, 4, 5)) == {A: 3}
    assert index.match((7,)) == {}


def test_a_capacity_that_shrinks() -> None:
    """The next insert brings the endpoint within it; without any, nothing is held."""
    index = PrefixIndex()
    index.insert(A, tuple(range(100)), capacity_blocks=100)
    index.insert(A, (0, 1), capacity_blocks=10)
    assert index.match(tuple(range(100))) == {A: 10}
    index.insert(A, (0, 1), capacity_blocks=0)
    assert index.match((0,)) == {}
    assert index.blocks(A) == 0
    index.insert(B, (0,), capacity_blocks=-1)
    assert index.blocks(B) == 0


def test_a_forgotten_endpoint_leaves_nothing_to_its_successor() -> None:
    """Its slot goes to the next newcomer, its blocks do not."""
    index = PrefixIndex()
    index.insert(A, (1, 2), capacity_blocks=9)
    index.insert(B, (1,), capacity_blocks=9)
    index.forget(A)
    index.forget("never seen")
    assert (index.match((1, 2)), index.blocks(A)) == ({B: 1}, 0)
    index.insert(C, (5,), capacity_blocks=9)
    assert index.match((1, 2)) == {B: 1}
    assert index.match((5,)) == {C: 1}
    index.insert(A, (5, 6), capacity_blocks=9)
    assert index.match((5, 6)) == {C: 1, A: 2}


def test_an_emptied_index_keeps_nothing() -> None:
    """Memory follows what is held."""
    index = PrefixIndex()
    for address in (A, B):
        index.insert(address, tuple(range(1000)), capacity_blocks=1000)
        index.forget(address)
    assert not index._holders
    assert not index._held


def test_the_version_follows_matches() -> None:
    """It changes with what a match could say, and not with use alone."""
    index = PrefixIndex()
    versions = [index.version]
    index.insert(A, (1, 2), capacity_blocks=2)
    versions.append(index.version)
    index.insert(A, (3,), capacity_blocks=2)
    versions.append(index.version)
    index.forget(A)
    versions.append(index.version)
    assert len(set(versions)) == 4
    index.insert(A, (1, 2), capacity_blocks=2)
    before = index.version
    index.insert(A, (1,), capacity_blocks=2)
    index.match((1, 2))
    index.forget(B)
    index.insert(B, (), capacity_blocks=2)
    assert index.version == before
