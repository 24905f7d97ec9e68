"""What the semantic cache learned outlives a restart on the disk, encrypted, where it is not in Redis."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from extproc.cache.purging import AnswerOrigin
from extproc.cache.semantic.entries import SemanticEntry
from extproc.config.model import Config
from extproc.core.tenant import hash_key
from extproc.service.semantic_kept import MAGIC, NAME, WRITE_NS, KeptWords, kept_words
from tests.stand.cached import answer_of, body_of
from tests.stand.semantic import Wording, worded

pytest.importorskip("numpy")
pytest.importorskip("cryptography")

KEYS = [b"k" * 32]
WAYS = ("How can I reset my password?", "How do I reset my password please", "how to reset my password")
RULES = {name: worded(f"tenant:{name}", wrong_max=0.05, confidence=0.6, check_share=0.01) for name in "ab"}
HOUR = 3_600_000_000_000
TRIES_MAX = 60


def words(
    place: Path, wording: Wording, keys: list[bytes] = KEYS, unix_ns: int = 0, **more: Any
) -> KeptWords:
    """The file of one service, whose machine's clock says `unix_ns`."""
    return KeptWords(
        place / NAME,
        keys,
        model_id=more.get("model_id", ""),
        bytes_max=1 << 20,
        clock=lambda: wording.now_ns,
        unix=lambda: unix_ns,
    )


def taught() -> Wording:
    """A service that gives an answer to a question in other words."""
    wording = Wording(RULES)
    for number in range(TRIES_MAX):
        wording.forget_exact()
        if wording.ask("a", body_of(WAYS[number % 3]), answer_of("Click on it."))[1] == "semantic":
            return wording
    raise AssertionError(wording.semantic.looked)


def due(kept: KeptWords) -> bool:
    return kept.waiting


def anybody(_scope: str, _whose: AnswerOrigin) -> bool:
    return False


def entries(wording: Wording) -> list[SemanticEntry]:
    return [entry for scope in wording.semantic.scopes.values() for entry in scope.entries.values()]


def test_what_was_learned_is_known_after_a_restart(tmp_path: Path) -> None:
    """The next process gives the answer at once, as old as it is; nothing of it can be read on the disk."""
    wording = taught()
    before = {entry.key: (entry.text, entry.checks, entry.answer.made_ns) for entry in entries(wording)}
    words(tmp_path, wording).last(wording.semantic)
    raw = (tmp_path / NAME).read_bytes()
    assert raw.startswith(MAGIC)
    assert b"password" not in raw
    assert b"Click" not in raw
    again = Wording(RULES)
    again.now_ns = 77 * HOUR
    kept = words(tmp_path, again, unix_ns=10_000_000_000)
    kept.load(again.semantic, anybody)
    assert kept.counts == {"taken": len(before), "refused": 0}
    for entry in entries(again):
        text, checks, made_ns = before[entry.key]
        assert (entry.text, entry.checks) == (text, checks)
        # As old as it was, and the ten seconds in which no service ran.
        assert again.now_ns - entry.answer.made_ns == wording.now_ns - made_ns + 10_000_000_000
    assert again.ask("a", body_of(WAYS[0]), b"")[1] == "semantic"
    assert again.ask("b", body_of(WAYS[0]), answer_of("b's"))[1] == "engine"


def test_what_nobody_may_be_given_is_not_taken(tmp_path: Path) -> None:
    """Nor what another key or another model wrote, nor a file that is damaged: it begins anew."""
    wording = taught()
    words(tmp_path, wording).last(wording.semantic)
    for more, unwanted in (
        ({}, lambda _scope, whose: whose.tenant == "a"),
        ({"keys": [b"x" * 32]}, anybody),
        ({"model_id": "another"}, anybody),
    ):
        again = Wording(RULES)
        words(tmp_path, again, **more).load(again.semantic, unwanted)
        assert not again.semantic.scopes
    raw = bytearray((tmp_path / NAME).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / NAME).write_bytes(raw)
    again = Wording(RULES)
    words(tmp_path, again).load(again.semantic, anybody)
    assert not again.semantic.scopes
    assert (tmp_path / f"{NAME}.damaged").exists()


def test_it_is_written_once_a_minute_where_something_has_changed(tmp_path: Path) -> None:
    """Without a change nothing is written; what was purged is not there the next time."""
    wording = taught()
    kept = words(tmp_path, wording)
    kept.step(wording.semantic, now_ns=wording.now_ns)
    assert due(kept)
    kept.write()
    size = (tmp_path / NAME).stat().st_size
    wording.semantic.clear()
    kept.step(wording.semantic, now_ns=wording.now_ns)
    assert not due(kept)
    kept.step(wording.semantic, now_ns=wording.now_ns + WRITE_NS)
    assert due(kept)
    kept.write()
    assert (tmp_path / NAME).stat().st_size < size
    kept.step(wording.semantic, now_ns=wording.now_ns + 2 * WRITE_NS)
    assert not due(kept)


@pytest.mark.parametrize(
    ("cache", "state", "there"),
    [
        ({"keys_env": "WORDS_KEYS"}, {"dir": "/var/lib/words"}, True),
        ({}, {"dir": "/var/lib/words"}, False),
        ({"keys_env": "WORDS_KEYS"}, {}, False),
        ({"keys_env": "WORDS_KEYS"}, {"dir": "/var/lib/words", "enabled": False}, False),
    ],
)
def test_prompts_are_on_the_disk_only_where_keys_encrypt_them(
    monkeypatch: pytest.MonkeyPatch, cache: dict[str, Any], state: dict[str, Any], there: bool
) -> None:
    """Without keys, or without a place, what was learned is lost with the process."""
    monkeypatch.setenv("WORDS_KEYS", Random(1).randbytes(32).hex())
    config = Config.model_validate(
        {
            "pools": [{"name": "m", "models": ["m"], "endpoints": [{"address": "10.0.0.1:80"}]}],
            "tenants": [{"name": "a", "keys": [{"sha256": hash_key("a")}], "cache": {"semantic": {}}}],
            "cache": cache,
            "state": state,
        }
    )
    assert (kept_words(config, model_id="", clock=lambda: 0) is not None) is there
