from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from recorded_traffic import record

from extproc.cli import group


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(group, ["replay", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_alone_it_tells_how_well_it_reproduces(log: Path) -> None:
    """Measured beside replayed, what was taken for what, and that it is simulated."""
    said = run(log, "--seed", "1,2").output
    assert "pool chat: 150 requests in" in said
    assert "3 replicas, strategy steer; seeds 1, 2" in said
    assert "timings are those that the service had learned" in said
    assert "timings are fitted to the first 150 streamed requests" in said
    assert "measured and replayed as recorded (simulated)" in said
    assert "against as recorded" not in said
    for figure in ("ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms", "attainment", "shed_share"):
        assert figure in said


def test_other_choices_stand_beside_it(log: Path, tmp_path: Path) -> None:
    """One for each strategy, each with all the rest; JSON and text are written where asked."""
    out = tmp_path / "out"
    options = ("--strategy", "steer,round_robin", "--param", "steer.queue_tokens=2048")
    options += ("--weight", "acme=3", "--replicas", "-1", "--seed", "1", "--no-fit")
    found = json.loads(run(log, *options, "--json", "--out", out).stdout)
    assert [each["name"] for each in found["choices"]] == [
        "as recorded",
        "steer queue_tokens=2048 acme=3 -1 replicas",
        "round_robin acme=3 -1 replicas",
    ]
    assert found["simulated"] is True
    assert found["choices"][1]["differences"]["e2e_p50_ms"]["mean"] > 0
    assert found == json.loads((out / "replay.json").read_text())
    assert "round_robin acme=3 -1 replicas, against as recorded:" in (out / "replay.txt").read_text()


def test_only_changes_mean_the_recorded_strategy(log: Path) -> None:
    """One replica more, of what was recorded between two times."""
    said = run(log, "--replicas", "+1", "--seed", "1", "--from", "+2", "--to", "+5").output
    assert "steer +1 replicas, against as recorded" in said
    assert "in 3 s" in said
    assert run(log, "--to", "2026-09-21T14:13:22Z", "--seed", "1").output.startswith("pool chat: ")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--strategy", "best"), 2, "--strategy: no strategy 'best'"),
        (("--param", "steer.x=1"), 2, "--param: 'steer.x=1': steer has no 'x'"),
        (("--param", "queue.depth=2"), 2, "--param: queue is not played; add it to --strategy"),
        (("--param", "steer.queue_tokens=-1"), 2, "queue_tokens is at least"),
        (("--weight", "acme=-1"), 2, "'acme=-1' is no weight; write TENANT=2"),
        (("--weight", "nobody=2"), 2, "tenant 'nobody' asked for nothing then; there are acme, globex"),
        (("--seed", "x"), 2, "--seed: 'x' is no seed"),
        (("--from", "noon"), 2, "--from: 'noon' is no time"),
        (("--to", "2026-09-21T14:13:22"), 2, "lacks its zone"),
        (("--replicas", "-3"), 1, "leaves none"),
        (("--pool", "none"), 1, "pools with some: chat"),
        (("--from", "+9999"), 1, "has no request for pool"),
    ],
)
def test_a_mistake_names_its_option(log: Path, options: tuple[str, ...], code: int, said: str) -> None:
    """Before anything is played."""
    assert said in run(log, *options, code=code).output


def test_what_is_no_record(tmp_path: Path) -> None:
    """Says how to get one."""
    path = tmp_path / "x"
    path.write_text("{}\n")
    assert "write one with 'record: {file: …}'" in run(path, code=1).output


def test_what_a_cache_would_have_saved(tmp_path: Path) -> None:
    """By tenant, as a table and as JSON, and that it is simulated."""
    path = tmp_path / "record.jsonl"
    record(path, requests=150, per_s=20.0)
    header, *lines = path.read_text().splitlines()
    at = json.loads(header)["fields"].index("question")
    told = []
    for number, line in enumerate(lines):
        values = json.loads(line)
        if isinstance(values, list):
            values[at] = f"{number % 30:016x}"
        told.append(json.dumps(values))
    path.write_text("\n".join([header, *told]) + "\n")
    options = (path, "--seed", "1,2", "--no-fit", "--cache", "64", "--cache-ttl", "600")
    said = run(*options).output
    assert "With a response cache of 64 MiB (600 s, simulated):" in said
    assert "hit rate" in said
    assert "without it," in said
    found = json.loads(run(*options, "--json").stdout)["cache"]
    assert found["simulated"] is True
    assert found["all"]["hits"] == sum(each["hits"] for each in found["tenants"].values()) > 50
    assert found["all"]["gpu_s"] > 0
    assert found["attainment"]["with"]["mean"] >= found["attainment"]["without"]["mean"]
    assert run(path, "--cache", "0", code=2)
