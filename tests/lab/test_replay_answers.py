"""What a record says of a response cache: equal requests by hashes alone, and what they would have saved."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from recorded_traffic import record

from extproc.cli import group
from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import find_route
from extproc.core.scaling.capacity import work_ms
from extproc.lab.replay.answers import hits_of, saving, without
from extproc.lab.replay.log import LogError, read
from extproc.lab.replay.rebuild import Scene, scene
from extproc.observe.questions import QUESTION_BYTES_MAX, QUESTION_DIGITS, QuestionHash
from extproc.sim.answers import CacheSize

LARGE = CacheSize(bytes_max=1 << 30, ttl_s=3_600.0)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """150 requests of two tenants, of which every third one asks what was asked before."""
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    record(path, requests=150, per_s=20.0)
    found = scene(read(path))
    rows = [
        replace(row, question=f"{at % 30 if at % 3 == 0 else at + 1_000:016x}", unfit="", answer_bytes=500)
        for at, row in enumerate(found.rows)
    ]
    return replace(found, rows=rows)


def test_equal_requests_of_a_tenant_are_answered_again(there: Scene) -> None:
    """Hits are repeats within a tenant of what was answered; they save their tokens and their work."""
    found = saving(there, LARGE, seeds=(1,))
    seen: set[tuple[str, str]] = set()
    expected, gpu_s = 0, 0.0
    for row, arrival in zip(there.rows, there.workload.arrivals, strict=True):
        key = (row.tenant, row.question)
        if key in seen:
            expected += 1
            cached = min(row.cached_tokens, arrival.prompt_tokens - 1)
            timing = there.machines[0].timing
            gpu_s += work_ms(timing, arrival.prompt_tokens, cached, arrival.output_tokens) / 1e3
        if row.outcome == "ok":
            seen.add(key)
    assert found.whole.hits == expected > 10
    assert found.whole.gpu_s == pytest.approx(gpu_s)
    assert found.whole.requests == len(there.rows) == found.whole.cacheable
    assert set(found.tenants) == {"acme", "globex"}
    assert found.saved.mean >= found.without.mean - 0.02


def test_what_may_not_be_cached_is_counted_by_reason(there: Scene) -> None:
    """Sampled requests are left out unless they are asked for; several reasons want all of them."""
    rows = [
        replace(row, unfit=("sampled", "tools,sampled", "several")[at // 3 % 3])
        for at, row in enumerate(there.rows)
    ]
    scene_of = replace(there, rows=rows)
    assert not any(hits_of(scene_of, LARGE))
    assert saving(scene_of, LARGE, seeds=(1,)).unfit == {"sampled": 51, "tools,sampled": 51, "several": 48}
    assert sum(hits_of(scene_of, LARGE, ("sampled", "tools"))) > sum(hits_of(scene_of, LARGE, ("sampled",)))


def test_what_is_left_out_of_a_record_with_two_pools_is_said(tmp_path: Path) -> None:
    """The table tells the larger pool's figures, and how many requests of the other are in none of them."""
    path = tmp_path / "record.jsonl"
    record(path, requests=120, per_s=20.0)
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if isinstance(line, list):
            number = int(line[1].split("-")[1])
            if number % 4 == 0:
                line[2], line[3] = "other", "n"
            line[-4] = f"{number % 10:016x}"
        elif "fleet" in line:
            (pool,) = line["fleet"]["pools"]
            line["fleet"]["pools"].append({**pool, "name": "other", "models": ["n"]})
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    counted = Counter(row.pool for row in read(path).rows)
    assert counted["chat"] > counted["other"] > 10
    ask = ["replay", str(path), "--cache", "64", "--seed", "1", "--no-fit"]
    for pool, other in [("chat", "other"), ("other", "chat")]:
        result = CliRunner().invoke(group, [*ask, "--pool", pool])
        assert result.exit_code == 0, result.output
        assert f"not played: {counted[other]} of {other}" in result.output


def test_a_failed_answer_is_not_kept(there: Scene) -> None:
    """What did not end well is asked again."""
    failed = replace(there, rows=[replace(row, outcome="error") for row in there.rows])
    assert not any(hits_of(failed, LARGE))


def test_the_rest_reaches_the_replicas(there: Scene) -> None:
    """The scene without its hits has rows and arrivals one for one."""
    hits = hits_of(there, LARGE)
    left = without(there, hits)
    assert len(left.rows) == len(left.workload.arrivals) == hits.count(False)


def test_a_record_without_repeats_says_how_to_get_them(tmp_path: Path) -> None:
    """The mistake names the setting."""
    path = tmp_path / "record.jsonl"
    record(path, requests=60, per_s=20.0)
    with pytest.raises(LogError, match="repeats: true"):
        hits_of(scene(read(path)), LARGE)
    result = CliRunner().invoke(group, ["replay", str(path), "--cache", "64", "--seed", "1", "--no-fit"])
    assert result.exit_code == 1
    assert "repeats: true" in result.output


def asked(body: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[Request, bytes]:
    route, data = find_route("POST", path), json.dumps(body).encode()
    assert route is not None
    request = parse(route, data)
    assert isinstance(request, Request)
    return request, data


def test_a_question_is_the_whole_request() -> None:
    """The order of keys is none of it; all else is, and the tenant; the key is each process's own."""
    ask = QuestionHash()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    turned = dict(reversed(body.items()))
    first = ask(*asked(body), "acme")
    assert len(first) == QUESTION_DIGITS
    assert ask(*asked(turned), "acme") == first
    assert ask(*asked(body), "globex") != first
    assert QuestionHash()(*asked(body), "acme") != first
    for other in ({"temperature": 0.0}, {"max_tokens": 4}, {"stream": True}, {"unknown": 1}):
        assert ask(*asked({**body, **other}), "acme") != first


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"temperature": 1}, "sampled"),
        ({"temperature": 0, "tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools,sampled"),
        ({"n": 2}, "several"),
    ],
)
def test_why_a_request_is_not_cached_is_said(more: dict[str, Any], why: str) -> None:
    """All that a tenant may set aside, and the first thing that nobody may."""
    body = {"messages": [{"role": "user", "content": "hi"}], **more}
    assert QuestionHash()(*asked(body), "acme").partition(":")[2] == why


def test_what_cannot_be_told_is_not() -> None:
    """A name that stands twice, a huge body and other routes have no hash."""
    ask = QuestionHash()
    request, data = asked({"messages": [{"role": "user", "content": "hi"}]})
    assert ask(request, data[:-1] + b', "messages": []}', "acme") == ""
    assert ask(request, data + b" " * QUESTION_BYTES_MAX, "acme") == ""
    assert ask(*asked({"inputs": "hi"}, "/tokenize"), "acme") == ""
