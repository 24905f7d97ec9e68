"""Which endpoints probably hold the KV cache of a prompt's beginning.

Owns the chained hashes of a prompt's blocks and, for one pool, the index of who was sent which. It
must not know what a decision does with a match, nor the tokens that a block stands for.

Laws: a hash covers all that comes before it, so equal hashes mean equal beginnings. Whoever holds a
block holds all blocks before it. The hashes are not cryptographic: a client that forges a collision
misleads the placing of its own requests, never their answers.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import compress

from xxhash import xxh3_64_intdigest

#: Bytes of text in one block: about 64 tokens.
BLOCK_BYTES = 256
#: Token ids in one block: 4 bytes each.
BLOCK_TOKENS = BLOCK_BYTES // 4
#: Blocks hashed of one prompt (1 MiB of text, 262,144 token ids); what comes after them is not seen.
BLOCKS_MAX = 4096
#: Bytes hashed of one prompt.
CHAINED_BYTES_MAX = BLOCKS_MAX * BLOCK_BYTES

# UTF-8 holds neither of these bytes, so that no text can be taken for a boundary.
_TEXT = b"\xfe"
#: What each mark begins with, so that marks cannot be taken for each other either.
MESSAGE_MARK, IMAGE_MARK, CALLS_MARK, TOOLS_MARK = b"\xff", b"\xfd", b"\xfc", b"\xfb"

_TEXT_SEED, _IDS_SEED = 1, 2
_block_of = struct.Struct(f"{BLOCK_BYTES}s").iter_unpack
# With more bits than this, and more than one slot in so many, a mask reads quicker as text than by bits.
_FEW, _DENSE = 32, 8
#: Calls all that a `map` has to call.
_run = deque[None](maxlen=0).extend
_DIGITS = bytes.maketrans(b"01", b"\x00\x01")


def chain(segments: Sequence[str], marks: Sequence[bytes] = ()) -> tuple[int, ...]:
    """The hashes of a text prompt's full blocks, each covering everything before it.

    `marks[i]` stands before `segments[i]` (see the `*_MARK` bytes; absent means the segment goes on
    where the last one ended). A list of segments begins with each of its own beginnings, and so do
    the hashes; two different lists are different bytes. At most BLOCKS_MAX hashes.
    """
    pieces: list[bytes] = []
    padded = (*marks, *(b"",) * (len(segments) - len(marks)))
    for mark, text in zip(padded, segments, strict=False):
        pieces += (mark, _TEXT, text[:CHAINED_BYTES_MAX].encode("utf-8", "replace"))
    return _chain(b"".join(pieces), _TEXT_SEED)


def chain_ids(ids: bytes) -> tuple[int, ...]:
    """The hashes of a prompt of token ids, 4 bytes each, BLOCK_TOKENS a block."""
    return _chain(ids, _IDS_SEED)


def of_adapter(blocks: Sequence[int], name: str) -> tuple[int, ...]:
    """A prompt's hashes under a LoRA adapter: what one has cached is of no use to another or to the base."""
    own = xxh3_64_intdigest(name.encode("utf-8", "replace"))
    return tuple([block ^ own for block in blocks])


def _chain(text: bytes, seed: int) -> tuple[int, ...]:
    blocks = min(len(text) // BLOCK_BYTES, BLOCKS_MAX)
    hashed = seed
    return tuple(
        [
            hashed := xxh3_64_intdigest(block, hashed)
            for (block,) in _block_of(memoryview(text)[: blocks * BLOCK_BYTES])
        ]
    )


class PrefixIndex:
    """Which endpoints of one pool hold which prefixes, as far as our own choices tell.

    Prefixes are chains: equal hashes have equal predecessors. Memory is bounded by the sum of the
    capacities (about 180 bytes a block that one endpoint holds, see `tests/bench/bench_prefix.py`).
    """

    def __init__(self) -> None:
        self.version = 0  # changes whenever a match could change
        # Per hash the endpoints that hold it, one bit each. Along a chain the masks only lose bits.
        self._holders: dict[int, int] = {}
        # Per endpoint its hashes, least recently used first, a chain's tail always before its head.
        self._held: dict[str, OrderedDict[int, None]] = {}
        self._slots: dict[str, int] = {}
        self._addresses: list[str] = []  # by slot; a free slot keeps its last address
        self._bits: list[int] = []  # 1 << slot, made once
        self._free: list[int] = []  # a heap: low slots first keeps the masks short

    def blocks(self, address: str) -> int:
        """How many blocks an endpoint holds; 0 for one never seen."""
        held = self._held.get(address)
        return len(held) if held is not None else 0

    def counts(self) -> dict[str, int]:
        """How many blocks each endpoint holds, by address; without those never seen."""
        return {address: len(held) for address, held in self._held.items()}

    def match(self, prefix: Sequence[int]) -> dict[str, int]:
        """Leading blocks of `prefix` held, by address; endpoints that hold none are left out.

        Changes nothing. Looks only where the holders change: (distinct lengths held) × log(blocks).
        """
        holders = self._holders.get
        first = holders(prefix[0], 0) if prefix else 0
        if not first:
            return {}
        found: dict[str, int] = {}
        # Stretches still to be searched: a block, who holds it, a later block, who holds that one.
        stretches = [(0, first, len(prefix), 0)]
        while stretches:
            low, low_mask, high, high_mask = stretches.pop()
            while high - low > 1:
                middle = (low + high) // 2
                mask = holders(prefix[middle], 0)
                if mask == low_mask:
                    low = middle
                elif mask == high_mask:
                    high = middle
                else:
                    stretches.append((middle, mask, high, high_mask))
                    high, high_mask = middle, mask
            self._name(low_mask ^ high_mask, high, found)
        return found

    def _name(self, mask: int, blocks: int, found: dict[str, int]) -> None:
        """Say of each endpoint in `mask` that it holds `blocks`."""
        addresses, bits = self._addresses, self._bits
        if mask.bit_count() > max(_FEW, mask.bit_length() // _DENSE):
            # Lowest slot first: the digits from the right.
            digits = f"{mask:b}"[::-1].encode().translate(_DIGITS)
            found.update(dict.fromkeys(compress(addresses, digits), blocks))
            return
        while mask:
            slot = mask.bit_length() - 1
            found[addresses[slot]] = blocks
            mask ^= bits[slot]

    def insert(self, address: str, prefix: Sequence[int], *, capacity_blocks: int) -> None:
        """Say that an endpoint now holds `prefix` and used it last; what exceeds its capacity goes.

        Of a prefix longer than the capacity the beginning is held. The least recently used blocks
        leave first, of equally old ones the later in their chain.
        """
        held = self._held.get(address)
        if held is None:
            if not prefix or capacity_blocks <= 0:
                return
            held = self._open(address)
        if len(prefix) > capacity_blocks:
            prefix = prefix[: max(capacity_blocks, 0)]
        holders, bit = self._holders, self._bits[self._slots[address]]
        before, after = 0, bit  # the last change of a mask: neighbours share it, as a value and in memory
        changed = False
        # From the tail to the head, so that the head is the most recent.
        rest = iter(reversed(prefix))
        for block in rest:
            if block in held:
                held.move_to_end(block)
                try:
                    # So are all before it: a loop in C moves them. One that was dropped alone is new.
                    _run(map(held.move_to_end, rest))
                    break
                except KeyError as dropped:
                    block = dropped.args[0]
            held[block] = None
            mask = holders.get(block, 0)
            if mask != before:
                before, after = mask, mask | bit
            holders[block] = after
            changed = True
        if len(held) > capacity_blocks:
            self._shrink(held, bit, max(capacity_blocks, 0))
            changed = True
        self.version += changed

    def shrink(self, address: str, *, capacity_blocks: int) -> None:
        """An endpoint holds no more than so many blocks: its least recently used ones go."""
        held = self._held.get(address)
        if held is not None and len(held) > capacity_blocks:
            self._shrink(held, self._bits[self._slots[address]], max(capacity_blocks, 0))
            self.version += 1

    def remove(self, address: str, blocks: Iterable[int]) -> int:
        """An endpoint says that it dropped these; how many of them it was believed to hold.

        Engines drop a chain's tail first. Should a middle go alone, a match may end before or behind it.
        """
        held = self._held.get(address)
        if held is None:
            return 0
        gone = [block for block in dict.fromkeys(blocks) if block in held]
        bit = self._bits[self._slots[address]]
        for block in gone:
            del held[block]
            mask = self._holders[block] ^ bit
            if mask:
                self._holders[block] = mask
            else:
                del self._holders[block]
        self.version += bool(gone)
        return len(gone)

    def known(self, block: int) -> bool:
        """Whether any endpoint is believed to hold a block."""
        return block in self._holders

    def holds(self, address: str, block: int) -> bool:
        """Whether an endpoint is."""
        return block in self._held.get(address, ())

    def forget(self, address: str) -> None:
        """An endpoint left or lost its cache: it holds nothing."""
        held = self._held.pop(address, None)
        if held is None:
            return
        slot = self._slots.pop(address)
        self._shrink(held, self._bits[slot], 0)
        heappush(self._free, slot)
        self.version += 1

    def _open(self, address: str) -> OrderedDict[int, None]:
        """Give an endpoint a slot; one given back has no bit left in any mask."""
        if self._free:
            slot = heappop(self._free)
            self._addresses[slot] = address
        else:
            slot = len(self._addresses)
            self._addresses.append(address)
            self._bits.append(1 << slot)
        self._slots[address] = slot
        held = self._held[address] = OrderedDict()
        return held

    def _shrink(self, held: OrderedDict[int, None], bit: int, capacity: int) -> None:
        holders = self._holders
        before, after = bit, 0
        for _ in range(len(held) - capacity):
            block, _nothing = held.popitem(last=False)
            mask = holders[block]
            if mask != before:
                before, after = mask, mask ^ bit
            if after:
                holders[block] = after
            else:
                del holders[block]
