from __future__ import annotations

from pathlib import Path

import pytest

from steersman_agent.config import AgentConfig, AgentConfigError, load, loads

GOOD = """\
node: gpu-7
zone: eu-1a
region: eu
services: [10.0.0.2:9003, "steersman.internal:9003"]
replicas:
  - {address: 10.0.0.5:8080, pool: llama, engine: tgi, kv_capacity_tokens: 400000, gpus: [0, GPU-abc]}
  - {address: "[::1]:8081", url: http://127.0.0.1:8081/, pool: llama, engine: vllm, zone: b, models: [m]}
drain: [10.0.0.5:8080]
"""


def problems(text: str) -> list[str]:
    with pytest.raises(AgentConfigError) as caught:
        loads(text, name="agent.yaml")
    return caught.value.problems


def test_a_good_file() -> None:
    """Addresses in their one spelling, URLs by default from them."""
    config = loads(GOOD)
    assert [replica.base_url for replica in config.replicas] == [
        "http://10.0.0.5:8080",
        "http://127.0.0.1:8081",
    ]
    assert [replica.port for replica in config.replicas] == [8080, 8081]
    assert config.replicas[0].gpus == (0, "GPU-abc")
    assert config.replicas[1].zone == "b"


def test_the_node_is_the_host_where_none_is_named() -> None:
    """An empty configuration is complete, for `--once`."""
    assert AgentConfig().node


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("engine: tgi", "engine: tgl"), "replicas[0].engine: 'tgl' is not one of 'tgi', 'vllm', "),
        (("10.0.0.5:8080, pool", "gpu7:8080, pool"), "replicas[0].address: 'gpu7' is not an IP address; "),
        (('"[::1]:8081"', '"2001:db8::11"'), "replicas[1].address: '2001:db8::11' is not ip:port; "),
        (("10.0.0.5:8080, pool", "10.0.0.5, pool"), "replicas[0].address: '10.0.0.5' is not ip:port; "),
        (
            ("kv_capacity_tokens: 400000", "kv_capacity: 4"),
            "replicas[0].kv_capacity: is not a setting here; ",
        ),
        (("kv_capacity_tokens: 400000", "kv_capacity_tokens: 0"), "must be 1 or more (it is 0)"),
        (("pool: llama, engine: tgi", "engine: tgi"), "replicas[0].pool: is missing; add it"),
        (("http://127.0.0.1:8081/", "127.0.0.1:8081"), "replicas[1].url: '127.0.0.1:8081' is not a base URL"),
        (('"[::1]:8081"', "10.0.0.5:8080"), "replicas[1].address: 10.0.0.5:8080 is replicas[0] already"),
        (("gpus: [0,", "gpus: [-1,"), "replicas[0].gpus[0]: -1 is no GPU"),
        (("drain: [10.0.0.5:8080]", "drain: [10.0.0.5:1]"), "drain[0]: 10.0.0.5:1 is none of the replicas"),
        (("10.0.0.2:9003", "10.0.0.2"), "services[0]: '10.0.0.2' is not host:port"),
        (
            ("zone: eu-1a", "nvml: yes-please"),
            "nvml: 'yes-please' is not one of 'auto', 'off' or 'fake:PATH'",
        ),
        (("zone: eu-1a", "mode: all"), "mode: 'all' is not one of 'each' or 'any'"),
        (("zone: eu-1a", "poll_ms: 2000"), "poll_idle_ms: is below poll_ms (2000)"),
        (("zone: eu-1a", "probe_ms: 10"), "probe_ms: would keep the engines busy; write 500 or more, or 0"),
        (("zone: eu-1a", "token_file: /nowhere"), "token_file: /nowhere is no file"),
        (("zone: eu-1a", "token_env: STEERSMAN_NONE"), "token_env: the environment has no STEERSMAN_NONE"),
        (("zone: eu-1a", "tls: {ca: /nowhere}"), "tls.ca: /nowhere is no file"),
        (("zone: eu-1a", "node: 'x y'"), "node: must be a name of letters"),
        (
            ('services: [10.0.0.2:9003, "steersman.internal:9003"]', ""),
            "services: is empty; list at least one",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_fix(change: tuple[str, str], expected: str) -> None:
    """`file: path: message`."""
    if change[0] == "zone: eu-1a" and change[1].startswith("node"):
        change = ("node: gpu-7", change[1])
    text = GOOD.replace(*change)
    assert text != GOOD
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith("agent.yaml: ")
    assert expected in found[0]


def test_every_mistake_is_told_at_once() -> None:
    """Three mistakes, three lines."""
    text = GOOD.replace("engine: tgi", "engine: x").replace("pool: llama, engine: vllm", "engine: vllm")
    assert len(problems(text + "extra: 1\n")) == 3


def test_a_certificate_goes_with_its_key(tmp_path: Path) -> None:
    """Mutual TLS needs both."""
    (tmp_path / "ca").write_text("")
    found = problems(GOOD + f"tls: {{ca: {tmp_path}/ca, cert: {tmp_path}/ca}}\n")
    assert found == ["agent.yaml: tls.key: is missing; cert and key go together"]


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "a: 2020-13-40\n", "\x00"])
def test_what_is_no_mapping_is_said(text: str) -> None:
    """One line, no traceback."""
    assert len(problems(text)) == 1


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """With what to write instead."""
    with pytest.raises(AgentConfigError, match="cannot be read: No such file or directory; give the"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"node: \xe4\n")
    with pytest.raises(AgentConfigError, match="is not UTF-8"):
        load(tmp_path / "latin.yaml")


def test_services_may_be_missing_for_one_look() -> None:
    """`--once` talks to none."""
    assert loads("zone: a\n", needs_services=False).services == ()


def test_what_was_meant_is_said() -> None:
    """As in steersman.yaml: the nearest key and word, and the same words for what is no YAML."""
    for text, said in [
        ("replica: []", "replica: is not a setting here; did you mean 'replicas'? This section knows"),
        ("mode: eech", "mode: 'eech' is not one of 'each' or 'any'; did you mean 'each'?"),
        ("services: [", "is not YAML: a bracket or a brace is not closed, or a value is missing (line 1)"),
        ("node: a\nnode: b", "node: stands here a second time; keep one of them"),
    ]:
        with pytest.raises(AgentConfigError) as caught:
            loads(text)
        assert said in caught.value.problems[0]
