"""A radix trie over KV blocks, as an engine's prefix cache keeps it.

Owns which blocks are cached, which are pinned by running work, and the order in which they leave
(least recently used leaf first, tail blocks before head; or the oldest, or any leaf first). A block is any
hashable id standing for `block_tokens` tokens *in its position*: two prompts share a prefix exactly as far
as their ids agree.
Knows no clock (recency is a counter), no capacity (the replica decides when to evict) and no I/O.

After TGI v3's `radix.rs`: edges are compressed, so a lookup costs Python work per branch, not per block.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Final
from zlib import crc32

#: Which leaf leaves first: the least recently used, the first that came, any (drawn by a seeded hash).
EVICTIONS: Final = ("lru", "fifo", "random")


@dataclass(slots=True, eq=False)
class _Node:
    blocks: tuple[Hashable, ...]
    parent: _Node | None
    used_at: int
    children: dict[Hashable, _Node] = field(default_factory=dict)
    pins: int = 0
    born_at: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A pinned prefix: its blocks cannot be evicted until the lease is released."""

    blocks: int
    node: _Node


class PrefixCache:
    """Blocks by prefix; every operation is deterministic in the order of calls."""

    __slots__ = ("_eviction", "_leaves", "_nodes", "_root", "_serial", "_time", "_used", "block_tokens")

    def __init__(self, *, block_tokens: int, eviction: str = "lru") -> None:
        if block_tokens < 1:
            raise ValueError(f"block_tokens must be at least 1, not {block_tokens}")
        if eviction not in EVICTIONS:
            raise ValueError(f"eviction must be one of {', '.join(EVICTIONS)}, not {eviction!r}")
        self.block_tokens = block_tokens
        self._eviction = eviction
        self._root = _Node((), None, 0)
        self._time = 0
        self._serial = 0
        self._used = 0
        self._nodes = 0
        # Lazy heap: an entry counts only while its node is still an unpinned leaf of that rank.
        self._leaves: list[tuple[int, int, _Node]] = []

    @property
    def used_tokens(self) -> int:
        """Tokens held, pinned or not."""
        return self._used * self.block_tokens

    def match(self, blocks: Sequence[Hashable]) -> int:
        """How many leading blocks are cached; changes nothing, not even recency."""
        node, at = self._root, 0
        while at < len(blocks):
            child = node.children.get(blocks[at])
            if child is None:
                break
            shared = _shared(child.blocks, blocks, at)
            at += shared
            if shared < len(child.blocks):
                break
            node = child
        return at

    def acquire(self, blocks: Sequence[Hashable]) -> Lease:
        """Pin the longest cached prefix of `blocks` (possibly none) and mark it used."""
        node, at = self._walk(blocks)
        node.pins += 1
        return Lease(at, node)

    def release(self, lease: Lease) -> None:
        """Unpin; each lease is released exactly once."""
        node = lease.node
        if not node.pins:
            raise RuntimeError("a lease was released twice")
        node.pins -= 1
        self._offer(node)

    def insert(self, blocks: Sequence[Hashable]) -> int:
        """Cache `blocks` as one prefix; the number of blocks that were not there before."""
        node, at = self._walk(blocks)
        rest = tuple(blocks[at:])
        if rest:
            child = _Node(rest, node, self._time, born_at=self._time)
            node.children[rest[0]] = child
            self._used += len(rest)
            self._nodes += 1
            self._offer(child)
        return len(rest)

    def evict(self, blocks: int) -> int:
        """Drop up to `blocks` unpinned blocks, leaves in the order of eviction; how many went."""
        gone = 0
        while gone < blocks and self._leaves:
            rank, _, node = heappop(self._leaves)
            parent = node.parent
            if parent is None or node.pins or node.children or self._rank(node) != rank or not node.blocks:
                continue
            wanted = blocks - gone
            if wanted < len(node.blocks):
                node.blocks = node.blocks[:-wanted]
                gone += wanted
                self._offer(node)
                break
            gone += len(node.blocks)
            del parent.children[node.blocks[0]]
            node.blocks = ()
            self._nodes -= 1
            self._offer(parent)
        self._used -= gone
        return gone

    def _walk(self, blocks: Sequence[Hashable]) -> tuple[_Node, int]:
        """The node that ends the longest cached prefix, splitting an edge where it ends inside one."""
        self._time += 1
        now = self._time
        node, at = self._root, 0
        while at < len(blocks):
            child = node.children.get(blocks[at])
            if child is None:
                break
            shared = _shared(child.blocks, blocks, at)
            at += shared
            if shared < len(child.blocks):
                node = self._split(child, shared)
                node.used_at = now
                break
            child.used_at = now
            node = child
            self._offer(child)
        return node, at

    def _split(self, node: _Node, head: int) -> _Node:
        """Put the first `head` blocks of `node` into a new parent; `node` keeps its pins and tail."""
        grandparent = node.parent
        if grandparent is None:
            raise RuntimeError("the root has no edge to split")
        above = _Node(node.blocks[:head], grandparent, node.used_at, born_at=node.born_at)
        grandparent.children[above.blocks[0]] = above
        node.blocks = node.blocks[head:]
        node.parent = above
        above.children[node.blocks[0]] = node
        self._nodes += 1
        return above

    def _offer(self, node: _Node) -> None:
        """Make a node a candidate for eviction where it is one."""
        if node.children or node.pins or node.parent is None:
            return
        self._serial += 1
        heappush(self._leaves, (self._rank(node), self._serial, node))
        if len(self._leaves) > 4 * self._nodes + 64:
            self._compact()

    def _compact(self) -> None:
        """Bound the lazy heap: hot prefixes leave one stale entry behind at every use."""
        latest = {
            id(entry[2]): entry
            for entry in self._leaves
            if entry[0] == self._rank(entry[2]) and entry[2].blocks
        }
        self._leaves = list(latest.values())
        heapify(self._leaves)

    def _rank(self, node: _Node) -> int:
        """Who leaves first: the least."""
        if self._eviction == "lru":
            return node.used_at
        # A hash of its birth and not a draw: the same calls forget the same blocks.
        return node.born_at if self._eviction == "fifo" else crc32(b"%d" % node.born_at)


def _shared(edge: tuple[Hashable, ...], blocks: Sequence[Hashable], at: int) -> int:
    """How many of `edge`'s blocks equal `blocks` from `at` on."""
    if len(blocks) - at >= len(edge) and tuple(blocks[at : at + len(edge)]) == edge:
        return len(edge)
    count = 0
    for mine, theirs in zip(edge, blocks[at : at + len(edge)], strict=False):
        if mine != theirs:
            break
        count += 1
    return count
