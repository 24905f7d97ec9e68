"""`bad/` holds one file per mistake; beside each, what is said of it (FILE stands for its path)."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.config.load import CONFIG_BYTES_MAX, ConfigError, load, loads

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))
GOOD = """
gateway: {auth: none}
pools:
  - name: chat
    models: [m, alias]
    endpoints: [{address: 127.0.0.1:8000}]
"""


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_a_mistake_and_its_message(path: Path) -> None:
    """Every mistake in a file is said at once, in its order, with line, path and mend."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    said = str(caught.value).replace(str(path), "FILE")
    assert said + "\n" == path.with_suffix(".txt").read_text(encoding="utf-8")


def test_every_message_is_a_line() -> None:
    """So that a terminal, a log and grep can do something with it."""
    assert len(BAD) > 50
    for path in BAD:
        lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        assert lines
        assert all(line.startswith("FILE:") for line in lines)


def test_no_key_is_repeated() -> None:
    """Not even one that stands where its hash should."""
    said = (Path(__file__).parent / "bad" / "tenant_key_in_clear.txt").read_text(encoding="utf-8")
    assert "secret" not in said


def test_a_good_file(tmp_path: Path) -> None:
    """The smallest configuration, with every default."""
    path = tmp_path / "steersman.yaml"
    path.write_text(GOOD, encoding="utf-8")
    config = load(path)
    assert config == loads(GOOD)
    assert config.default_model == "m"
    assert config.service_addresses == ["127.0.0.1:50051"]
    pool = config.pool_of("alias")
    assert pool is not None
    assert (pool.strategy, pool.endpoints[0].max_concurrent, pool.bytes_per_token) == ("steer", 128, 4.0)
    assert config.pool_of("x") is None


def test_anchors_and_merge_keys() -> None:
    """YAML's own way of not saying a thing twice works."""
    config = loads(
        """
gateway: {auth: none}
pools:
  - &base
    name: a
    models: [m]
    strategy: random
    endpoints: [{address: 127.0.0.1:1}]
  - <<: *base
    name: b
    models: [n]
    endpoints: [{address: 127.0.0.1:2}]
"""
    )
    assert [(pool.name, pool.strategy) for pool in config.pools] == [("a", "random"), ("b", "random")]


def test_a_bomb_of_aliases_is_read_once() -> None:
    """Aliases within aliases do not multiply the work of looking for repeated keys."""
    lines = ["x0: &x0 {a: 1}"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ConfigError) as caught:
        loads("\n".join(lines))
    assert len(caught.value.problems) == 31, "30 unknown settings, and no pools"


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("127.0.0.1:08080", "127.0.0.1:8080"),
        ("[::1]:80", "[::1]:80"),
        ("[0:0:0:0:0:0:0:1]:80", "[::1]:80"),
        ("[FD00::A]:80", "[fd00::a]:80"),
    ],
)
def test_an_address_has_one_spelling(written: str, canonical: str) -> None:
    """Envoy compares endpoints as strings."""
    config = loads(GOOD.replace("127.0.0.1:8000", f"'{written}'"))
    assert config.pools[0].endpoints[0].address == canonical


def test_a_hash_may_say_what_it_is() -> None:
    """`sha256:` before it, and capitals, as tools print them."""
    digest = "AB" * 32
    config = loads(GOOD + f"tenants: [{{name: t, keys: [{{sha256: 'sha256:{digest}'}}]}}]")
    assert config.tenants[0].keys[0].sha256 == "ab" * 32


def said_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    return str(problem).removeprefix(f"{path}")


def test_not_utf8(tmp_path: Path) -> None:
    """Said with the byte."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"pools: \xff")
    assert said_of(path) == ": is not UTF-8 (byte 7); save it as UTF-8"


def test_control_characters(tmp_path: Path) -> None:
    """YAML has none."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"pools: \x00")
    assert said_of(path) == ": is not YAML: special characters are not allowed"


def test_unreadable(tmp_path: Path) -> None:
    """Missing, a folder, or too large."""
    assert said_of(tmp_path / "no") == (
        ": cannot be read: No such file or directory; give the configuration with -f FILE"
    )
    assert said_of(tmp_path) == ": cannot be read: Is a directory; give the configuration with -f FILE"
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(CONFIG_BYTES_MAX + 1)
    assert (
        said_of(large) == f": the file has {CONFIG_BYTES_MAX + 1} bytes; at most {CONFIG_BYTES_MAX} are read"
    )
