"""`steersman explain` and the command behind it, without Envoy: asked, answered, drawn and refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from extproc.cli import group
from extproc.cli.explain import ROWS_MAX, show
from extproc.config.own_routes import own_routes
from extproc.config.routes import RouteConfig, RouteModel
from extproc.core.families import Family
from extproc.core.fleet import PoolSpec
from extproc.core.outcome import Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.routes import by_path
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.service.explanations import Explanations
from tests.stand.schedulers import make_scheduler

CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=40, max_new_tokens=5)
BODY = json.dumps({"messages": [{"content": "hello"}], "max_tokens": 5})


def scheduler_of(count: int = 2) -> Scheduler:
    endpoints = tuple((f"10.0.{i // 256}.{i % 256}:80", "", 4) for i in range(count))
    pool = PoolSpec(name="p", models=("m", "n"), strategy="steer", endpoints=endpoints)
    scheduler = make_scheduler(pool)
    scheduler.settings.families = {"auto": Family(name="auto", models=("m", "n"), thresholds=(0.5,))}
    return scheduler


def explaining_of(scheduler: Scheduler, *names: str) -> Explanations:
    tenants = {name: Tenant(name=name) for name in names}
    return Explanations(scheduler, tenants=lambda: tenants, clock=lambda: 10**9)


def answered(explaining: Explanations, **order: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(explaining.explain(json.dumps(order).encode()))
    return found


def drawn(found: dict[str, Any]) -> str:
    screen = io.StringIO()
    show(found, Console(file=screen, width=160))
    return screen.getvalue()


def test_a_given_request_is_read_as_the_service_reads_it() -> None:
    """The body's model counts, else the one given beside it; of one tenant no name is needed."""
    one = explaining_of(scheduler_of(), "acme")
    assert answered(one, body=BODY)["tenant"] == "acme"
    assert answered(one, body=BODY, model="n")["model"] == "n"
    named = json.dumps({"model": "m", "messages": [{"content": "x"}]})
    assert answered(one, body=named, model="n")["model"] == "m"
    tgi = answered(one, path="/generate", body='{"inputs": "x"}')
    assert (tgi["model"], tgi["pool"], len(tgi["endpoints"])) == ("m", "p", 2)
    assert answered(one, path="/info")["work"]["permits"] == 0


def test_a_route_of_the_file_is_read_as_it_says() -> None:
    """Where its model is named, and what of it is work."""
    (row,) = own_routes([RouteConfig(path="/own", work="embedding", model=RouteModel(field="o.m"))])
    explaining = Explanations(
        scheduler_of(),
        tenants=lambda: {"a": Tenant(name="a")},
        clock=lambda: 10**9,
        extra=lambda: by_path([row]),
    )
    found = answered(explaining, path="/own", body='{"o": {"m": "n"}}')
    assert (found["model"], found["work"]["output_tokens"]) == ("n", 0)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"id": "x-1"}, "no request 'x-1' waits here or is among the last 1000 decisions"),
        ({"body": BODY}, "whose request? There are 2 tenants"),
        ({"tenant": "nobody", "body": BODY}, "no tenant 'nobody' here"),
        ({"tenant": "acme", "body": "{"}, "the request would get 400: the body is not valid JSON"),
        ({"tenant": "acme", "body": BODY, "path": "/v2/x"}, "nothing is decided for POST /v2/x"),
        ({"tenant": "acme", "path": "/v1/models"}, "nothing is decided for GET /v1/models"),
    ],
)
def test_what_cannot_be_explained(order: dict[str, str], said: str) -> None:
    """Is said in a ValueError, which reaches the command line as its message."""
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        answered(explaining_of(scheduler_of(), "acme", "globex"), **order)


def test_the_table() -> None:
    """Verdicts, scores with their time, terms and reasons stand in it; text of others has no markup."""
    scheduler = scheduler_of()
    first, _ = scheduler.fleet.endpoints
    first.draining = True
    first.refresh()
    text = drawn(answered(explaining_of(scheduler, "a[red]b"), body=BODY, model="auto"))
    for part in (
        "chosen #1",
        "removed",
        "draining",
        "score (now)",
        "prefill_ms",
        "a[red]b",
        "auto: score 0.",
    ):
        assert part in text
    decision = scheduler.admit(CHAT, Tenant(name="t"), now_ns=0)
    assert isinstance(decision, Routed)
    later = drawn(answered(explaining_of(scheduler, "t"), id=decision.reservation.id))
    for part in ("score (then)", "terms (then)", "in flight", "1.0 s ago", "TTFT ", "score (now)"):
        assert part in later
    assert later.index("score (then)") < later.index("the same request would") < later.index("score (now)")


def test_a_large_pool_is_cut_short() -> None:
    """The rest is counted, and --json has it."""
    found = answered(explaining_of(scheduler_of(ROWS_MAX + 300), "t"), body=BODY)
    assert len(found["endpoints"]) == ROWS_MAX + 300
    text = drawn(found)
    assert "… and 300 more" in text
    assert text.count("10.0.") < ROWS_MAX + 10


@pytest.mark.parametrize("arguments", [[], ["i-1", "--body", "-"], ["--prompt-file", "-", "--body", "-"]])
def test_one_thing_is_asked_for(arguments: list[str]) -> None:
    """An id, a prompt or a body; anything else is bad usage."""
    result = CliRunner().invoke(group, ["explain", *arguments], input="x")
    assert result.exit_code == 2
    assert "give one of: an ID, --prompt-file, --body" in result.output


def test_no_service(tmp_path: Path) -> None:
    """Exits 1 and says how to name one."""
    result = CliRunner().invoke(group, ["explain", "i-1", "--address", f"unix:{tmp_path}/none.sock"])
    assert result.exit_code == 1
    assert "Give its service.listen with --address" in result.output


def test_families_train(tmp_path: Path) -> None:
    """Writes weights that a configuration can name, and reports the accuracy on lines held out."""
    from extproc.config.load import ConfigError, loads
    from extproc.core.families import DEFAULT
    from extproc.service.build import families_of

    labelled = Path(__file__).parents[1] / "core" / "families" / "labelled.jsonl"
    out = tmp_path / "weights.json"
    result = CliRunner().invoke(group, ["families", "train", str(labelled), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "held out 34 lines: " in result.output
    config = f"""
gateway: {{auth: none}}
pools:
  - {{name: s, models: [small], endpoints: [{{address: 127.0.0.1:1}}]}}
  - {{name: l, models: [large], endpoints: [{{address: 127.0.0.1:2}}]}}
families:
  - {{name: auto, models: [small, large], weights: {out}}}
  - {{name: mine, models: [small, large], thresholds: [0.7], shift_down: null}}
"""
    families = families_of(loads(config))
    trained, mine = families["auto"], families["mine"]
    assert trained.weights != DEFAULT
    assert (trained.thresholds, trained.wait_ms) == ((0.5,), 500.0)
    assert (mine.thresholds, mine.wait_ms, mine.weights) == ((0.7,), None, DEFAULT)
    out.write_text("{}")
    with pytest.raises(ConfigError, match=r"families\.auto\.weights: is no file of weights"):
        families_of(loads(config))
    out.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        families_of(loads(config))


def test_families_train_says_what_is_wrong(tmp_path: Path) -> None:
    """With the line, exit 2, and nothing is written."""
    labelled, out = tmp_path / "l.jsonl", tmp_path / "w.json"
    labelled.write_text(
        '{"label": "simple", "prompt": "x"}\n\n{"label": "odd", "prompt": "x"}\n{"label": 2, "prompt": "x"}\n'
        '{"label": 0.5, "body": {"model": "m"}}\n[1]\n'
    )
    result = CliRunner().invoke(group, ["families", "train", str(labelled), "--out", str(out)])
    assert result.exit_code == 2
    for part in (":3: KeyError: 'odd'", ":4: the label 2.0", ":5: 'messages' is missing", ":6: TypeError"):
        assert part in result.output
    assert "4 lines cannot be used; nothing is written" in result.output
    labelled.write_text('{"label": "simple", "prompt": "x"}\n')
    result = CliRunner().invoke(group, ["families", "train", str(labelled), "--out", str(out)])
    assert (result.exit_code, "at least two labels" in result.output) == (2, True)
    assert not out.exists()
