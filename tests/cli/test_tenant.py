from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from extproc.cli import group
from extproc.config.load import load
from extproc.core.tenant import hash_key
from extproc.history.versions import ConfigHistory, locked

TEXT = f"""\
# Ours.
gateway: {{listen: "127.0.0.1:8080"}}
pools:
  - {{name: chat, models: [m], endpoints: [{{address: "10.0.0.1:80"}}]}}
tenants:
  - name: acme   # the first
    quota: {{requests_per_minute: 10, burst: 0.5}}
    keys:
      - {{sha256: {hash_key("a-key")}, name: ci}}
  # the second
  - name: globex
    keys: [{{sha256: {hash_key("b-key")}}}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "steersman.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(file: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(group, [*arguments, "-f", str(file)], env={"USER": "ann"})
    assert result.exit_code == code, result.output
    return result


def versions(file: Path) -> list[tuple[int, str, str, str]]:
    reading = ConfigHistory(file).read()
    assert reading.problems == []
    return [(each.version, each.who, each.command, each.why) for each in reading.entries]


def test_a_quota_is_changed_in_its_line_alone(file: Path) -> None:
    """The rest of the file stays to the letter, its mode too, and the history says who and why."""
    file.chmod(0o640)
    run(file, "tenant", "set", "acme", "--requests-per-minute", "100", "--borrow", "2", "--why", "they pay")
    new = "{borrow: 2, requests_per_minute: 100, burst: 0.5}"
    assert file.read_text() == TEXT.replace("{requests_per_minute: 10, burst: 0.5}", new)
    assert file.stat().st_mode & 0o777 == 0o640
    assert ConfigHistory(file).path.stat().st_mode & 0o777 == 0o600
    assert versions(file) == [(1, "", "found", ""), (2, "ann", "tenant set acme", "they pay")]
    assert [each.name for each in file.parent.iterdir() if each.name.endswith(".new")] == []


def test_limits_of_models_and_keys_and_none(file: Path) -> None:
    """Each has its place; 'none' takes a limit away; what is so already is no version."""
    run(file, "tenant", "set", "globex", "--model", "m", "--gpu-seconds-per-hour", "1.5", "--why", "x")
    run(file, "tenant", "set", "acme", "--key", "ci", "--concurrent-requests", "3", "--why", "x")
    run(file, "tenant", "set", "acme", "--requests-per-minute", "none", "--weight", "2", "--why", "x")
    run(file, "tenant", "set", "acme", "--burst", "none", "--why", "x", "--who", "bob")
    same = run(file, "tenant", "set", "acme", "--requests-per-minute", "none", "--why", "x")
    assert "nothing to change" in same.output
    acme, globex = load(file).tenants
    assert globex.model_quotas["m"].gpu_seconds_per_hour == 1.5
    assert acme.keys[0].quota is not None
    assert (acme.keys[0].quota.concurrent_requests, acme.weight) == (3, 2.0)
    assert acme.quota.model_fields_set == set()
    assert [version[1] for version in versions(file)] == ["", "ann", "ann", "ann", "bob"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["acme", "--burst", "90", "--weight", "0"], "tenants[0].quota.burst: must be 10.0 or less"),
        (["acme", "--class", "gold"], "tenants[0].class: no class 'gold'"),
        (["acme", "--requests-per-minute", "1.5"], "must be a whole number"),
        (["acme", "--requests-per-minute", "many"], "'many' is no number"),
        (["nobody", "--burst", "1"], "no tenant 'nobody'; there are acme, globex"),
        (["acme", "--key", "x", "--burst", "1"], "no key is 'x'; acme has ci"),
        (["acme"], "nothing to change; give a limit"),
    ],
)
def test_a_mistake_changes_nothing(file: Path, arguments: list[str], said: str) -> None:
    """Every one is said, exit 2, and neither the file nor the history is touched."""
    result = run(file, "tenant", "set", *arguments, "--why", "x", code=2)
    assert said in result.output
    assert file.read_text() == TEXT
    assert not ConfigHistory(file).exists


def test_a_change_wants_a_reason(file: Path) -> None:
    """The history would be worth little without."""
    assert "--why" in run(file, "tenant", "set", "acme", "--burst", "1", code=2).output
    assert "--why" in run(file, "tenant", "key", "new", "acme", code=2).output
    assert not ConfigHistory(file).exists


def test_a_key_is_made_listed_and_revoked(file: Path) -> None:
    """Shown once; what is kept is its hash, in the file and nowhere else."""
    made = run(
        file, "tenant", "key", "new", "acme", "--name", "eu", "--expires", "90d", "--why", "x", "--json"
    )
    key = json.loads(made.output)
    assert hash_key(key["key"]) == key["sha256"]
    for each in file.parent.iterdir():
        assert key["key"] not in each.read_text(encoding="utf-8")
    [eu, ci] = json.loads(run(file, "tenant", "key", "list", "acme", "--json").output)
    assert (eu["id"], eu["state"], ci["id"], ci["state"]) == ("eu", "valid", "ci", "valid")
    assert eu["expires"] is not None
    run(file, "tenant", "key", "revoke", "acme", "eu", "--why", "leaked")
    assert "revoked already" in run(file, "tenant", "key", "revoke", "acme", "eu", "--why", "leaked").output
    assert load(file).tenants[0].keys[0].revoked
    assert "revoked" in run(file, "tenant", "key", "list", "acme").output
    assert (
        "has a key 'eu' already"
        in run(file, "tenant", "key", "new", "acme", "--name", "eu", "--why", "x", code=2).output
    )
    assert "no key is 'a'" in run(file, "tenant", "key", "revoke", "acme", "a", "--why", "x", code=2).output


@pytest.mark.parametrize("expires", ["0d", "soon", "2001-01-01", "999999y"])
def test_a_key_ends_in_the_future(file: Path, expires: str) -> None:
    """Anything else is a mistake, and nothing is written."""
    run(file, "tenant", "key", "new", "acme", "--expires", expires, "--why", "x", code=2)
    assert file.read_text() == TEXT


def test_a_key_under_the_secret(file: Path, tmp_path: Path) -> None:
    """Where the service's secret can be read its HMAC is what is kept."""
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123")
    file.write_text(f"{TEXT}identity: {{key_secret_file: {secret}}}\n")
    key = json.loads(run(file, "tenant", "key", "new", "globex", "--why", "x", "--json").output)
    assert load(file).tenants[1].keys[0].hmac_sha256 == hash_key(key["key"], secret.read_bytes())


def test_a_key_without_a_tenant_is_only_printed() -> None:
    """As ever."""
    result = CliRunner().invoke(group, ["tenant", "key", "new"])
    key, digest = (line.split()[1] for line in result.output.splitlines())
    assert hash_key(key) == digest
    assert set(json.loads(CliRunner().invoke(group, ["tenant", "key", "new", "--json"]).output)) == {
        "key",
        "sha256",
    }


def test_history_diff_and_rollback(file: Path) -> None:
    """Each version can be seen, compared and had again; an editor's change is one too."""
    run(file, "tenant", "set", "acme", "--weight", "2", "--why", "first")
    file.write_text(file.read_text().replace("# Ours.", "# Theirs."))
    run(file, "tenant", "set", "acme", "--weight", "3", "--why", "second")
    assert [each[2] for each in versions(file)] == [
        "found",
        "tenant set acme",
        "changed outside",
        "tenant set acme",
    ]
    assert "+# Theirs." in run(file, "config", "diff", "2", "3").output
    assert "-    weight: 2" in run(file, "config", "diff", "2").output
    run(file, "config", "rollback", "1", "--why", "all wrong")
    assert file.read_text() == TEXT
    assert versions(file)[-1] == (5, "ann", "config rollback 1", "all wrong")
    assert "nothing to change" in run(file, "config", "rollback", "1", "--why", "x").output
    assert (
        "no version 9 is kept; there are 1 to 5"
        in run(file, "config", "rollback", "9", "--why", "x", code=1).output
    )
    listed = json.loads(run(file, "config", "history", "--json").output)
    assert [each["version"] for each in listed] == [1, 2, 3, 4, 5]
    assert all("text" not in each for each in listed)
    assert "all wrong" in run(file, "config", "history").output


def test_a_broken_file_is_rolled_back(file: Path) -> None:
    """What stood there is kept beside it, and not in the history: a key may stand in it."""
    run(file, "tenant", "set", "acme", "--weight", "2", "--why", "x")
    file.write_text("pools: [")
    assert "is not YAML" in run(file, "tenant", "set", "acme", "--weight", "3", "--why", "x", code=2).output
    run(file, "config", "rollback", "2", "--why", "broken")
    assert load(file).tenants[0].weight == 2.0
    assert file.with_name("steersman.yaml.refused").read_text() == "pools: ["
    assert 'pools: ["' not in ConfigHistory(file).path.read_text()


def test_without_history(file: Path) -> None:
    """It says so."""
    assert "has no history yet" in run(file, "config", "history", code=1).output


def test_an_altered_history_shows(file: Path) -> None:
    """Exit 1, and the line is named."""
    run(file, "tenant", "set", "acme", "--weight", "2", "--why", "good")
    path = ConfigHistory(file).path
    path.write_text(path.read_text().replace('"why":"good"', '"why":"none"'))
    assert "history.jsonl:2: version 2 was altered" in run(file, "config", "history", code=1).output


def test_changes_are_audited(file: Path, tmp_path: Path) -> None:
    """With who, why and the version; a key by its hash's beginning alone."""
    log = tmp_path / "audit.jsonl"
    file.write_text(f"{TEXT}audit: {{file: {log}}}\n")
    run(file, "tenant", "set", "acme", "--requests-per-minute", "20", "--why", "more")
    key = json.loads(run(file, "tenant", "key", "new", "acme", "--why", "x", "--json").output)
    run(file, "tenant", "key", "revoke", "acme", key["id"], "--why", "y")
    events: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each["event"] for each in events] == [
        "quota_changed",
        "config_written",
        "key_added",
        "config_written",
        "key_revoked",
        "config_written",
    ]
    changed = events[0]
    assert (changed["who"], changed["why"], changed["version"], changed["stage"]) == (
        "ann",
        "more",
        2,
        "written",
    )
    assert (changed["before"]["requests_per_minute"], changed["after"]["requests_per_minute"]) == (10, 20)
    assert events[4]["key"] == key["sha256"][:12]
    assert key["key"] not in log.read_text()


def test_commands_wait_for_each_other(file: Path) -> None:
    """Two at once are two versions, not one lost."""
    with locked(file), pytest.raises(BlockingIOError), locked(file, wait=False):
        pass
    run(file, "tenant", "set", "acme", "--weight", "2", "--why", "x")
