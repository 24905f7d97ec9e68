"""Tokenizers of several families, trained here on this project's pages: small, real, the same each time."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import msgspec
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import find_route

ROOT = Path(__file__).resolve().parents[2]
#: Llama 3's and Qwen's way to split a text into words.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILIES = ("gpt2", "llama3", "sentencepiece", "wordpiece", "unigram")


@cache
def prose() -> str:
    """What is trained on, and counted: English with code, tables and lists."""
    pages = ("pools", "caching", "security", "api", "health", "concepts")
    return "\n\n".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in pages)


@cache
def trained(family: str, size: int = 2_000) -> str:
    """A tokenizer.json as text."""
    tokenizer, trainer = _of(family, size)
    tokenizer.train_from_iterator(prose().splitlines(), trainer)
    made = json.loads(tokenizer.to_str())
    # Files of models often cut off and fill up; counts must do neither.
    made["truncation"] = {
        "direction": "Right",
        "max_length": 128,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    return json.dumps(made)


def _of(family: str, size: int) -> tuple[Tokenizer, trainers.Trainer]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if family in ("gpt2", "llama3"):
        tokenizer = Tokenizer(models.BPE())
        if family == "gpt2":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        else:
            split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
            bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    if family == "sentencepiece":
        # As Llama 2's: a blank before each text, blanks written as ▁, no words beforehand.
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        return tokenizer, trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>"], show_progress=False)
    if family == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer, trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=["[UNK]"], show_progress=False
        )
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=size, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )


def written(folder: Path, family: str = "llama3", size: int = 2_000) -> Path:
    """A tokenizer.json in a folder."""
    path = folder / f"{family}-{size}.json"
    path.write_text(trained(family, size), encoding="utf-8")
    return path


def asked(*messages: tuple[str, str], path: str = "/v1/chat/completions", **more: object) -> Request:
    """A request of these messages (role, text), or with another body."""
    body: dict[str, object] = {"messages": [{"role": role, "content": text} for role, text in messages]}
    route = find_route("POST", path)
    assert route is not None
    found = parse(route, msgspec.json.encode({**body, **more}))
    assert isinstance(found, Request)
    return found
