"""Documents that are made from the code; with STEERSMAN_UPDATE_DOCS=1 this writes them."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest
from documents import PAGES, name_of, with_contents

from extproc.cli import COMMANDS
from extproc.control.cors import EXPOSED
from extproc.core.errors import Error
from extproc.core.strategies import OWN, PEERS, STRATEGIES, Strategy, parameters

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "strategies.md"
HEAD = """# Strategies

How a replica is chosen. A pool names a strategy (`pools[].strategy`, default `steer`). A tenant may have
another (`tenants[].strategy`), and so may an arm of an [experiment](experiments.md). Parameters stand under
`pools[].strategy_parameters.NAME`.

| strategy | what it goes by |
|---|---|
| `steer` (default) | the predicted time to first token, with late binding; it protects running streams, KV memory and cached prefixes |
| `queue` | the predicted start, with late binding; keeps some places free for the first class |
| `prefix` | the longest cached prefix, unless that replica is overloaded; sessions stay where they began |
| `cost` | the cheapest replica that still meets the targets; the first class keeps the fast ones |
| `latency` | the predicted time, corrected by recent latencies; the better of two drawn at random |
| `weighted_round_robin` | in turn, weighted by memory, speed, health and load |
| `least_work`, `least_request`, `power_of_two` | tokens or requests in flight |
| `round_robin`, `random` | neither |
| `llmd-default`, `llmd-token-load`, `sglang-cache-aware`, `aibrix-prefix`, `dynamo-kv`, `sticky-least-loaded` | other projects' policies, rebuilt to compare with |

With every strategy, filters come first. A replica is no candidate when it is not ready, when its permits
are taken, or when it is outside the tenant's regions. One that has just failed comes last. The replica with
the lowest score is chosen. `steersman explain` shows each replica's score with its terms, and what removed
it.

With late binding (`steer` and `queue`) a request waits in the gateway's fair queue while no replica would
start it.

Sometimes a choice has to be made with too little: all telemetry of a pool is old, or there was a fault in
the gateway. Then `least_request` chooses, and the reason says "degraded".

How the strategies compare, simulated on production traces, is in [simulator.md](simulator.md).

(To make this page again from the modules: `STEERSMAN_UPDATE_DOCS=1 .venv/bin/pytest tests/test_docs.py`.)
"""  # noqa: E501 (a table's rows)


OTHERS = """# A strategy of your own

A distribution of your own may add one. Steersman finds it by an entry point of the group
`steersman.strategies`, whose name is the strategy's:

```toml
[project.entry-points."steersman.strategies"]
example-least-permits = "example_strategy:LeastPermits"
```

The class derives from `Strategy` or `Scored`. All that it needs is exported by `extproc.core.strategies`:

```python
@dataclass(frozen=True, slots=True)
class LeastPermits(Scored):
    name: ClassVar[str] = "example-least-permits"

    health: float = bounded(1.0, 0.0, 4.0)

    def scores(self, candidates, work, at):
        return [(e.load_permits + 1) / e.weight**self.health for e in candidates]

    def explain(self, endpoint, work, expected, *, at):
        return {"permits": endpoint.load_permits, "weight": endpoint.weight}
```

- The lowest score is chosen. `Strategy.rank` instead of `Scored.scores` may draw, or let a request wait.
- Fields are parameters, with a default and a range. Each pool has an instance of its own.
- `forecasts` gives the times that the default goes by, for many endpoints at once.
- Traits and hooks stand in `Strategy`, each with a default: `binds_late`, `keeps_own`, `picked` and others.
- A strategy does no I/O. Time comes as `at.now_ns`, chance as `rng`.

Install the distribution where Steersman runs, and name the strategy in the file. It is imported when a file
names it. If it is broken, `steersman check` names the distribution and what is wrong. Files that do not name
it are not affected. A strategy that fails in a decision costs no request: `least_request` chooses then, and
the reason says "degraded". Names of ours are not replaced. `simulate`, `replay` and `tune` take it as they
take ours. The whole example is in `tests/plugins/steersman-example`.
"""


def section(strategy: Strategy) -> str:
    """A strategy's module docstring and its parameters."""
    module = inspect.getmodule(type(strategy))
    assert module is not None
    title, _, body = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    summary = " ".join(title.partition(": ")[2].split())
    lines = [f"## `{strategy.name}`", "", summary[:1].upper() + summary[1:], ""]
    if body:
        lines += ["```text", body, "```", ""]
    known = parameters(strategy.name)
    if known:
        lines += ["| parameter | type | default |", "|---|---|---|"]
        lines += [f"| `{name}` | {kind.__name__} | {value} |" for name, (kind, value) in known.items()]
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """The whole document."""
    ours = [section(strategy) for strategy in OWN]
    peers = [section(strategy) for strategy in PEERS]
    about = (
        "# Other projects' policies, to compare with\n\nRebuilt from what is published; they never hold.\n"
    )
    return with_contents("\n".join([HEAD, *ours, about, *peers, OTHERS]).rstrip() + "\n")


def test_the_strategies_page_is_what_the_modules_say() -> None:
    """Formula, inputs, stale inputs and parameters of each."""
    if os.environ.get("STEERSMAN_UPDATE_DOCS"):
        DOC.write_text(page(), encoding="utf-8")
    assert DOC.read_text(encoding="utf-8") == page(), "write it anew: STEERSMAN_UPDATE_DOCS=1"


def test_the_errors_of_the_api_page_are_the_codes_table() -> None:
    """Status, code and when, in its order: clients' authors decide by them what to do."""
    path = ROOT / "docs" / "api.md"
    before, head, rest = path.read_text(encoding="utf-8").partition(
        "| status | code | when |\n|---|---|---|\n"
    )
    _, foot, after = rest.partition("| other | |")
    rows = "".join(f"| {each.status} | `{each.code}` | {each.when} |\n" for each in Error)
    page = f"{before}{head}{rows}{foot}{after}"
    if os.environ.get("STEERSMAN_UPDATE_DOCS"):
        path.write_text(page, encoding="utf-8")
    assert foot
    assert path.read_text(encoding="utf-8") == page, "write it anew: STEERSMAN_UPDATE_DOCS=1"


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_says_what_it_is(name: str) -> None:
    """Its module opens with its name and what it does."""
    module = inspect.getmodule(type(STRATEGIES[name]))
    assert module is not None
    assert (module.__doc__ or "").startswith(f"{name}: ")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    """In the table of docs/cli.md, to which README leads, and on a page that says what it is good for."""
    table = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"| [`steersman {name}`](#steersman-{name}) | " in table
    assert "(docs/cli.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    by_hand = [page.read_text(encoding="utf-8") for page in PAGES if page.name != "cli.md"]
    assert any(re.search(rf"\bsteersman {re.escape(name)}\b", text) for text in by_hand), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_a_page_names_is_there(page: Path) -> None:
    """A newcomer who types what stands there is not told that there is no such command."""
    code = re.findall(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", page.read_text(encoding="utf-8"), re.DOTALL)
    said = "\n".join(block or inline for block, inline in code)
    named = re.findall(r"(?:^|bin/|\| )steersman ([a-z][a-z-]*)", said, re.MULTILINE)
    assert set(named) <= set(COMMANDS), page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """Files that are linked exist."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_web_pages_may_read_every_header_that_is_documented() -> None:
    """The table of response headers, and what clients' libraries read beside."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = page.partition("## Response headers")[2].split("\n## ")[0]
    firsts = re.findall(r"^\| (`[^|]+`) \|", rows, re.MULTILINE)
    named = [name for first in firsts for name in re.findall(r"`([^`]+)`", first)]
    headers = {name if name.startswith("x-") else f"x-ratelimit{name}" for name in named}
    assert len(headers) > 8
    assert set(EXPOSED) == headers | {"retry-after", "x-request-id"}
