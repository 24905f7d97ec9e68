"""What an engine's KV events tell: which blocks its prefix cache holds. Pure: batches come as bytes.

vLLM and SGLang publish batches `[ts, events, rank]` in msgpack, each with a sequence number from 0 on. An
event is an array `[tag, fields …]` or a map `{"type": tag, …}`: BlockStored, BlockRemoved, AllBlocksCleared.
Fields and events that nobody here knows are passed over.

**What can truly be told of them.** The engine hashes token ids; the gateway's index hashes the prompt's text,
and token ids only where clients send ids. So two things go to the service. Of blocks whose tokens are known
from the prompt's start on, the digests that our own index has of token ids (64 to a block): exact, for
prompts of token ids. For prompts of text only sums: how many tokens are cached, how many blocks came and
went, how often all were dropped. A request is not tied to the blocks that appeared while it ran: several run
at once, and a guess would be said as truth.

Equal tokens under a LoRA adapter are another cache: the digests of its blocks have its name in them, as the
index's own do. Blocks of an adapter that only has a number, with extra keys (images, a salt) or of another KV
group than the first have no digest. Blocks in a tier below the GPU's memory are not counted.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from xxhash import xxh3_64_intdigest

from steersman_agent.figures import KvView

#: As extproc/core/prefix.py hashes token ids, and those under an adapter (a test holds the two equal).
OWN_BLOCK_TOKENS, IDS_SEED = 64, 2
_OWN_BYTES: Final = 4 * OWN_BLOCK_TOKENS
#: Blocks of one rank that are remembered, about 300 bytes each; what comes beyond is not known to be held.
BLOCKS_MAX: Final = 131_072
#: Changes of digests that a report tells: so many, and for so long, so that a report that is lost does no
#: harm.
CHANGES_MAX, CHANGES_S = 1024, 5.0
#: One event's blocks, and one batch's events.
EVENT_BLOCKS_MAX: Final = 65_536
EVENTS_MAX: Final = 65_536

_FIELDS: Final = {
    "BlockStored": (
        *("block_hashes", "parent_block_hash", "token_ids", "block_size"),
        *("lora_id", "medium", "lora_name", "extra_keys", "group_idx"),
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}
_HASH_TYPES: Final = (int, bytes, str)


@dataclass(slots=True)
class _Held:
    """One block: its tokens, our digests that end in it, the chain so far (None: its start is not known)."""

    tokens: int
    digests: tuple[int, ...] = ()
    chain: int | None = None
    tail: bytes = b""


class KvBook:
    """The blocks of one publisher (one data-parallel rank), batch by batch."""

    def __init__(self) -> None:
        #: The next sequence number.
        self.expected = 0
        self._ts = float("-inf")
        self._blocks: dict[int | bytes | str, _Held] = {}
        self._digests: Counter[int] = Counter()
        self._changes: OrderedDict[int, tuple[bool, float]] = OrderedDict()
        self._sums = KvView()

    def take(self, sequence: int, payload: bytes, now_s: float) -> None:
        """Take a batch; one that is above the expected number means that those between are lost."""
        try:
            batch = msgspec.msgpack.decode(payload)
            stamp, events = float(batch[0]), batch[1]
            if not isinstance(events, list) or len(events) > EVENTS_MAX:
                raise ValueError("no list of events")
        except (msgspec.MsgspecError, TypeError, ValueError, LookupError, RecursionError):
            if sequence >= self.expected:
                self._add(unreadable=1)
                self._lose(sequence + 1)
            return
        if sequence < self.expected:
            if stamp <= self._ts:
                return  # told twice: by a replay and by the stream
            self._restart()
        if sequence > self.expected:
            self._lose(sequence)
        self.expected, self._ts = sequence + 1, stamp
        for event in events:
            self._event(event, now_s)

    def view(self, now_s: float) -> KvView:
        """The sums, and the digests that changed of late."""
        since_s = now_s - CHANGES_S
        recent = [(digest, held) for digest, (held, at_s) in self._changes.items() if at_s >= since_s]
        return replace(
            self._sums,
            stored=tuple(digest for digest, held in recent if held),
            removed=tuple(digest for digest, held in recent if not held),
        )

    def holds(self, digest: int) -> bool:
        """Whether a block of ours, by its digest, is held whole."""
        return self._digests[digest] > 0

    @property
    def gaps(self) -> int:
        """How often events were lost for good."""
        return self._sums.gaps

    def replayed(self) -> None:
        """A replay was asked for."""
        self._add(replays=1)

    def _event(self, event: Any, now_s: float) -> None:
        if isinstance(event, Mapping):
            tag, told = event.get("type"), event
        elif isinstance(event, list) and event:
            tag = event[0]
            names = _FIELDS.get(tag, ()) if isinstance(tag, str) else ()
            told = dict(zip(names, event[1:], strict=False))
        else:
            return
        self._add(events=1)
        if tag == "AllBlocksCleared":
            self._clear()
            self._sums = replace(self._sums, complete=True, clears=self._sums.clears + 1)
        elif tag in ("BlockStored", "BlockRemoved"):
            hashes = told.get("block_hashes")
            group = told.get("group_idx")
            if not isinstance(hashes, list) or len(hashes) > EVENT_BLOCKS_MAX:
                return
            if told.get("medium") not in (None, "GPU"):
                return
            hashes = [each for each in hashes if isinstance(each, _HASH_TYPES)]
            if not (isinstance(group, int) and group):
                (self._stored if tag == "BlockStored" else self._removed)(hashes, told, now_s)

    def _stored(self, hashes: list[int | bytes | str], told: Mapping[str, Any], now_s: float) -> None:
        size, ids, parent = told.get("block_size"), told.get("token_ids"), told.get("parent_block_hash")
        if not isinstance(size, int) or not 0 < size <= EVENT_BLOCKS_MAX:
            return
        packed: bytes | None = None
        adapter = _adapter(told)
        if adapter is not None and isinstance(ids, list) and len(ids) == size * len(hashes):
            try:
                packed = struct.pack(f"<{len(ids)}I", *ids)
            except struct.error:
                packed = None  # SGLang's pairs of tokens, for one
        before = self._blocks.get(parent) if isinstance(parent, _HASH_TYPES) else None
        chain, own = None, xxh3_64_intdigest(adapter.encode("utf-8", "replace")) if adapter else 0
        if packed is not None:
            chain = IDS_SEED if parent is None else before.chain if before is not None else None
        tail = before.tail if before is not None else b""
        for place, name in enumerate(hashes):
            digests: list[int] = []
            if chain is not None and packed is not None:
                tail += packed[4 * size * place : 4 * size * (place + 1)]
                while len(tail) >= _OWN_BYTES:
                    chain = xxh3_64_intdigest(tail[:_OWN_BYTES], chain)
                    digests.append(chain ^ own)
                    tail = tail[_OWN_BYTES:]
            if name in self._blocks:
                continue
            if len(self._blocks) >= BLOCKS_MAX:
                self._sums = replace(self._sums, complete=False)
                return
            self._blocks[name] = _Held(size, tuple(digests), chain, tail if chain is not None else b"")
            self._add(stored_blocks=1, cached_tokens=size)
            for digest in digests:
                self._digests[digest] += 1
                if self._digests[digest] == 1:
                    self._change(digest, True, now_s)

    def _removed(self, hashes: list[int | bytes | str], _told: Mapping[str, Any], now_s: float) -> None:
        for name in hashes:
            block = self._blocks.pop(name, None)
            self._add(removed_blocks=1, cached_tokens=-block.tokens if block is not None else 0)
            for digest in block.digests if block is not None else ():
                self._digests[digest] -= 1
                if not self._digests[digest]:
                    del self._digests[digest]
                    self._change(digest, False, now_s)

    def _change(self, digest: int, held: bool, now_s: float) -> None:
        self._changes[digest] = (held, now_s)
        self._changes.move_to_end(digest)
        if len(self._changes) > CHANGES_MAX:
            _, (_held, at_s) = self._changes.popitem(last=False)
            if now_s - at_s <= CHANGES_S:
                self._add(changes_left_out=1)

    def _lose(self, sequence: int) -> None:
        """Batches were lost for good: what is held is not known any more, only what comes from here on."""
        self._clear()
        self._sums = replace(self._sums, complete=False, gaps=self._sums.gaps + 1)
        self.expected = sequence

    def _restart(self) -> None:
        """The numbers began anew: another process, with an empty cache."""
        self._clear()
        self._sums = replace(self._sums, complete=True, clears=self._sums.clears + 1)
        self.expected, self._ts = 0, float("-inf")

    def _clear(self) -> None:
        self._blocks.clear()
        self._digests.clear()
        self._changes.clear()
        self._sums = replace(self._sums, cached_tokens=0)

    def _add(self, **counts: int) -> None:
        self._sums = replace(
            self._sums, **{name: getattr(self._sums, name) + count for name, count in counts.items()}
        )


def _adapter(told: Mapping[str, Any]) -> str | None:
    """The adapter whose blocks were stored; "" for the base's, None where more than tokens and its name tell
    them apart. vLLM repeats the name in each block's extra keys; older versions tell a number alone."""
    name, number, extra = told.get("lora_name"), told.get("lora_id"), told.get("extra_keys")
    if not (name is None or (isinstance(name, str) and name)) or (name is None and number is not None):
        return None
    keys = extra if isinstance(extra, list) else []
    own = (name, number)
    plain = all(not each or (isinstance(each, list) and all(key in own for key in each)) for each in keys)
    return name or "" if plain else None


def merged(books: Iterable[KvBook], now_s: float) -> KvView | None:
    """What a replica's ranks hold together; a block that one of them holds is held. None without a rank."""
    books = list(books)
    views = [book.view(now_s) for book in books]
    if len(views) < 2:
        return views[0] if views else None
    gone = dict.fromkeys(digest for view in views for digest in view.removed)
    stored = dict.fromkeys(digest for view in views for digest in view.stored)
    sums = {
        name: sum(getattr(view, name) for view in views)
        for name, field in KvView.__dataclass_fields__.items()
        if field.type == "int"
    }
    return KvView(
        **sums,
        complete=all(view.complete for view in views),
        stored=tuple(stored)[-CHANGES_MAX:],
        removed=tuple(each for each in gone if not any(book.holds(each) for book in books))[-CHANGES_MAX:],
    )
