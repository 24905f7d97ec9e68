"""`bad/` holds one file per mistake; beside each, what is said of it (FILE stands for its path)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from extproc import yamltext
from extproc.config.load import CONFIG_BYTES_MAX, ConfigError, load, loads
from extproc.config.model import Config
from extproc.meant import nearest

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


@pytest.mark.parametrize(
    ("listen", "services", "ads_services", "expected"),
    [
        ([], ["10.0.0.1:1"], [], []),
        (["127.0.0.1:2"], [], [], ["127.0.0.1:2"]),
        (["unix:/run/ads.sock", "0.0.0.0:2"], ["10.0.0.1:1"], [], ["unix:/run/ads.sock"]),
        (["0.0.0.0:2"], ["10.0.0.1:1", "[fd00::1]:7", "unix:/s"], [], ["10.0.0.1:2", "[fd00::1]:2"]),
        (["0.0.0.0:2"], ["10.0.0.1:1", "10.0.0.1:7"], [], ["10.0.0.1:2"]),
        (
            ["0.0.0.0:2"],
            ["10.0.0.1:1", "10.0.0.1:7"],
            ["10.0.0.1:8", "[::1]:9"],
            ["10.0.0.1:8", "[::1]:9"],
        ),
        (["0.0.0.0:2"], ["unix:/s"], [], ["0.0.0.0:2"]),
    ],
)
def test_where_envoy_is_told_of_endpoints(
    listen: list[str], services: list[str], ads_services: list[str], expected: list[str]
) -> None:
    """At the services' hosts with the port of service.ads_listen, or where gateway.ads_services says."""
    gateway = {"auth": "none", "services": services, "ads_services": ads_services}
    pools = [{"name": "p", "models": ["m"], "endpoints": [{"address": "127.0.0.1:9"}]}]
    config = {"gateway": gateway, "service": {"ads_listen": listen}, "pools": pools}
    assert Config.model_validate(config).ads_addresses == expected


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


@pytest.mark.parametrize("path", BAD, ids=[path.stem for path in BAD])
def test_without_libyaml_the_same_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wording: not the parser's own, which differ."""
    monkeypatch.setattr(yamltext, "_FAST", yaml.SafeLoader)
    test_a_mistake_and_its_message(path)


def test_aliases_that_multiply_are_taken_while_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they stand for is counted, not what is written."""
    text = "gateway: {auth: none}\npools: [{name: c, models: [m], endpoints: [{address: '127.0.0.1:1'}]}]\n"
    text += "tenants: [{name: a, regions: &r [x, y]}, {name: b, regions: *r}]\n"
    monkeypatch.setattr(yamltext, "VALUES_MAX", 50)
    assert loads(text).tenants[1].regions == ["x", "y"]
    monkeypatch.setattr(yamltext, "VALUES_MAX", 20)
    with pytest.raises(ConfigError, match="more than 20 values"):
        loads(text)


def test_brackets_in_texts_are_no_depth() -> None:
    """They only cost the fast parser."""
    config = loads(GOOD.replace("models: [m, alias]", f"models: ['{'[' * 100}']"))
    assert config.pools[0].models == ["[" * 100]


@pytest.mark.parametrize("deep", ["[" * 50_000, "- " * 50_000, "{a: " * 50_000, "? " * 50_000])
def test_what_is_nested_without_end_is_said(deep: str) -> None:
    """It neither kills the process nor is it looked at for long."""
    with pytest.raises(ConfigError) as caught:
        loads(f"pools: {deep}" if deep[0] in "[{" else deep)
    assert "nested too deeply" in str(caught.value)


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("endpionts", ["endpoint", "endpoints"], "endpoints"),
        ("vLLM", ["tgi", "vllm"], "vllm"),
        ("least-work", ["least_request", "least_work"], "least_work"),
        ("llmd-defalt", ["llmd-default", "random"], "llmd-default"),
        ("triton", ["tgi", "vllm", "sglang", "llamacpp"], None),
        ("", ["tgi"], None),
        (5, ["tgi"], None),
        ("x" * 1_000_000, ["x" * 1_000_000], None),
    ],
)
def test_what_was_meant(word: object, known: list[str], said: str | None) -> None:
    """The nearest name, whatever the capitals and dashes; none where none is near, or it would take long."""
    assert nearest(word, known) == said


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


def test_the_header_of_a_gateways_fairness_may_name_tenants() -> None:
    """Of the names that gateways write themselves one is a tenant's; who may say it is asked all the same."""
    text = (
        "gateway: {trusted_proxy: {networks: [10.0.0.0/24], header: x-gateway-inference-%s}}\n"
        "pools: [{name: chat, models: [m], endpoints: [{address: '127.0.0.1:8000'}]}]\n"
        "tenants: [{name: acme}]\n"
    )
    read = loads(text % "fairness-id")
    assert read.gateway.trusted_proxy is not None
    with pytest.raises(ConfigError, match="has another meaning here"):
        loads(text % "objective")


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
    path.write_bytes(b"version: 1\npools: \x1b")
    assert said_of(path) == (
        ":2: is not YAML: a control character (code 27) stands in it; is it the right file?"
    )
    path.write_bytes(b"\x7fELF\x02\x00")
    assert said_of(path) == ": is not text (byte 5 is 0); is it the right file?"


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
        said_of(large)
        == f": has {CONFIG_BYTES_MAX + 1} bytes; at most {CONFIG_BYTES_MAX} are read, is it the right file?"
    )
