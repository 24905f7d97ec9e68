"""The engines' own keys: from a file or the environment, said where they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.config.engine_keys import engine_keys, key_headers
from extproc.config.load import ConfigError, loads
from extproc.config.model import Config
from extproc.config.restart import restart_needed

POOL = "- {name: %s, models: [%s], engine: vllm%s, endpoints: [{address: '127.0.0.1:%d'}]}\n"


def own(key: str) -> str:
    return f", upstream: {{key: {{{key}}}}}"


def config(*keys: str) -> Config:
    pools = "".join(POOL % (f"p{i}", f"m{i}", key, 9000 + i) for i, key in enumerate(keys))
    return loads(f"gateway: {{auth: none}}\npools:\n{pools}")


def test_by_file_and_by_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pool has its own; who names none has none. Blanks around a key are none of it."""
    (tmp_path / "key").write_text(" sk-a\n")
    monkeypatch.setenv("STEERSMAN_ENGINE", "sk-b")
    read = config(own(f"file: {tmp_path}/key"), own("env: STEERSMAN_ENGINE"), "")
    assert engine_keys(read) == {"p0": "sk-a", "p1": "sk-b"}


@pytest.mark.parametrize("content", ["", "two words", "sk-\u00e9", "a\r\nb: c", "x" * 4097, "x" * 9000])
def test_what_is_no_key(tmp_path: Path, content: str) -> None:
    """It would not fit into a header, or change another; the message names the setting and not the key."""
    (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError) as found:
        engine_keys(config(own(f"file: {tmp_path}/key")))
    assert "pools[0].upstream.key.file: is not one word" in str(found.value)
    assert "a\r\nb" not in str(found.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and an unset variable are mistakes, told at the start and at a reload."""
    for key in (own(f"file: {tmp_path}/none"), own("env: STEERSMAN_NO_SUCH")):
        with pytest.raises(ConfigError, match=r"pools\[0\]\.upstream\.key"):
            engine_keys(config(key))


def test_one_of_the_two() -> None:
    """Which one would count is anybody's guess."""
    with pytest.raises(ConfigError, match="has both file and env; keep one of them"):
        config(own("file: /k, env: K"))


def test_it_needs_no_restart_where_we_tell_envoy() -> None:
    """An Envoy with clusters of its own has the key from its file or its environment."""
    assert restart_needed(config(""), config(own("env: K")), live=True) == []
    assert restart_needed(config(""), config(own("env: K"))) == ["pools[0].upstream"]


def test_its_header() -> None:
    """A bearer token unless told otherwise; x-api-key has the key alone."""
    keys = (
        "env: K",
        "env: K, scheme: ''",
        "env: K, header: x-api-key",
        "env: K, header: x-api-key, scheme: v1",
    )
    read = config(*map(own, keys))
    assert list(key_headers(read, dict.fromkeys(("p0", "p1", "p2", "p3"), "k")).values()) == [
        ("authorization", "Bearer k"),
        ("authorization", "k"),
        ("x-api-key", "k"),
        ("x-api-key", "v1 k"),
    ]
