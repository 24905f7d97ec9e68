"""A prefix index agrees with a model that keeps lists, whatever is inserted, evicted and forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from extproc.core.prefix import BLOCK_BYTES, PrefixIndex, chain
from tests.stand.examples import examples

ENDPOINTS = [f"10.0.0.{i}:80" for i in range(70)]

Path = tuple[int, ...]
# Prompts over a small alphabet, so that they share beginnings and part ways.
paths = st.lists(st.integers(0, 2), max_size=12).map(tuple)
addresses = st.sampled_from(ENDPOINTS)


def hashes(path: Path) -> list[int]:
    """A hash for each beginning of a path: never the same for two of them."""
    number, out = 1, []
    for letter in path:
        number = number * 3 + letter  # the leading 1 keeps lengths apart
        out.append(number)
    return out


class IndexMachine(RuleBasedStateMachine):
    """Holdings as plain lists of paths, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[str, list[Path]] = {}
        self.asked: set[Path] = {(0,) * 12, (1, 2) * 6}

    def put(self, address: str, path: Path, capacity: int) -> None:
        before, version = sorted(self.held.get(address, [])), self.index.version
        self.index.insert(address, hashes(path), capacity_blocks=capacity)
        held = self.held.setdefault(address, [])
        for length in range(min(len(path), capacity), 0, -1):
            if path[:length] in held:
                held.remove(path[:length])
            held.append(path[:length])
        del held[: max(0, len(held) - capacity)]
        assert (self.index.version != version) == (sorted(held) != before)
        self.asked.add(path)

    @rule(address=addresses, path=paths, capacity=st.integers(0, 30))
    def insert(self, address: str, path: Path, capacity: int) -> None:
        self.put(address, path, capacity)

    @rule(count=st.integers(30, len(ENDPOINTS)), path=paths, capacity=st.integers(5, 30))
    def insert_widely(self, count: int, path: Path, capacity: int) -> None:
        for address in ENDPOINTS[:count]:
            self.put(address, path, capacity)

    @rule(address=addresses)
    def forget(self, address: str) -> None:
        before, version = self.held.pop(address, []), self.index.version
        self.index.forget(address)
        assert not before or self.index.version != version

    @rule(path=paths)
    def ask(self, path: Path) -> None:
        self.asked.add(path)

    @invariant()
    def matches_are_the_longest_prefixes(self) -> None:
        for path in self.asked:
            expected: dict[str, int] = {}
            for address, held in self.held.items():
                length = 0
                while length < len(path) and path[: length + 1] in held:
                    length += 1
                if length:
                    expected[address] = length
            assert self.index.match(hashes(path)) == expected

    @invariant()
    def who_holds_a_block_holds_all_before_it(self) -> None:
        for address in ENDPOINTS:
            held = self.index._held.get(address, {})
            assert all(block // 3 in held for block in held if block // 3 > 1)

    @invariant()
    def counts_and_memory_agree(self) -> None:
        for address in ENDPOINTS:
            assert self.index.blocks(address) == len(self.held.get(address, []))
        assert len(self.index._holders) == len({path for held in self.held.values() for path in held})


TestIndex = IndexMachine.TestCase
TestIndex.settings = examples(60, steps=25)

texts = st.text(alphabet="ab\xfe\xff\udcff🙂", max_size=6)
messages = st.lists(st.tuples(st.sampled_from([b"", b'\xff"user"', b'\xff"tool"']), texts), max_size=5)


@given(first=messages, second=messages)
def test_chains_are_equal_only_for_equal_messages(
    first: list[tuple[bytes, str]], second: list[tuple[bytes, str]]
) -> None:
    """Two message lists have the same hashes exactly when they are the same text by the same people."""
    # A closing segment fills the block, so that every byte before it is hashed.
    closing = (b"\xff", "x" * BLOCK_BYTES)

    def hashed(turns: list[tuple[bytes, str]]) -> int:
        marks, segments = zip(*turns, closing, strict=True)
        return chain(segments, marks)[0]

    def spoken(turns: list[tuple[bytes, str]]) -> list[tuple[bytes, bytes]]:
        return [(mark, text.encode("utf-8", "replace")) for mark, text in turns]

    assert (hashed(first) == hashed(second)) == (spoken(first) == spoken(second))


@given(turns=messages, more=messages)
def test_a_longer_conversation_begins_with_the_shorter(
    turns: list[tuple[bytes, str]], more: list[tuple[bytes, str]]
) -> None:
    """Appending messages appends hashes."""

    def hashed(turns: list[tuple[bytes, str]]) -> tuple[int, ...]:
        return chain([text * BLOCK_BYTES for _, text in turns], [mark for mark, _ in turns])

    assert hashed(turns + more)[: len(hashed(turns))] == hashed(turns)
