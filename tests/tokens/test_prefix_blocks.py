"""Prefixes are compared as text: blocks of the model's own tokens would find hardly more of them."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from extproc.core.prefix import BLOCK_TOKENS, PrefixIndex, chain, chain_ids
from tests.stand.vocabulary import prose, written

REPLICAS = [f"10.0.0.{number}:80" for number in range(4)]
#: Prompts that each replica has had, and prompts that are placed by them.
HELD, PLACED = 4, 200
CHARACTERS = 6_000
#: Of the tokens that the best replica holds of a prompt this share is not at the one that is chosen.
LOST_MAX = 0.015


@pytest.fixture(scope="module", params=["llama3", "sentencepiece"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tok")
    tokenizer = Tokenizer.from_file(str(written(folder, request.param)))
    tokenizer.no_truncation()
    return tokenizer


def test_blocks_of_tokens_would_hardly_place_better(model: Tokenizer) -> None:
    """Four replicas hold beginnings of any length of the same texts, cut within words too."""
    rng, whole = Random(1), prose()
    texts = [whole[number * 8_000 :][:CHARACTERS] for number in range(4)]
    by_text, by_ids = PrefixIndex(), PrefixIndex()
    held: dict[str, list[list[int]]] = {replica: [] for replica in REPLICAS}

    def prompt() -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
        own = whole[rng.randrange(len(whole) - 800) :][: rng.randrange(100, 800)]
        text = rng.choice(texts)[: rng.randrange(CHARACTERS)] + own
        ids = model.encode(text, add_special_tokens=False).ids
        return ids, chain([text]), chain_ids(struct.pack(f"<{len(ids)}I", *ids))

    for replica in REPLICAS * HELD:
        ids, blocks, id_blocks = prompt()
        held[replica].append(ids)
        by_text.insert(replica, blocks, capacity_blocks=100_000)
        by_ids.insert(replica, id_blocks, capacity_blocks=100_000)
    best = lost_text = lost_ids = differ = 0
    for _ in range(PLACED):
        ids, blocks, id_blocks = prompt()
        shared = {each: max(_shared(ids, one) for one in held[each]) for each in REPLICAS}
        chosen = _most(by_text.match(blocks)), _most(by_ids.match(id_blocks))
        differ += chosen[0] != chosen[1]
        best += (most := max(shared.values()))
        lost_text += most - shared[chosen[0]]
        lost_ids += most - shared[chosen[1]]
    print(
        f"lost by text {lost_text / best:.4f}, by tokens {lost_ids / best:.4f}; {differ} of {PLACED} differ"
    )
    assert best > PLACED * BLOCK_TOKENS
    assert lost_text <= LOST_MAX * best
    assert lost_ids <= LOST_MAX * best


def _most(matched: dict[str, int]) -> str:
    """Who holds the longest beginning; of several the first."""
    return max(REPLICAS, key=lambda each: matched.get(each, 0))


def _shared(one: list[int], other: list[int]) -> int:
    """Tokens that two lists begin with alike."""
    length = min(len(one), len(other))
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
