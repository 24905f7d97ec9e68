"""Documents that are made from the code; with STEERSMAN_UPDATE_DOCS=1 this writes them."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest

from extproc.cli import COMMANDS
from extproc.core.strategies import OWN, PEERS, STRATEGIES, Strategy, parameters

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "strategies.md"
HEAD = """# Strategies

How a replica is chosen. A pool names one (`pools[].strategy`, default `steer`), a tenant may have another
(`tenants[].strategy`), an experiment a third; parameters stand under `pools[].strategy_parameters.NAME`.
Whatever the strategy, filters come first: endpoints that are not ready, whose permits are taken, or that are
outside a tenant's regions are no candidates, and one that has just failed comes last. The score is
lower-is-better; `steersman explain` shows each endpoint's score with its terms, and what removed it.

When a choice has to be made with less than it should (every report of a pool is stale, or a fault of ours)
it is made by `least_request`, and the reason says so. `steer` and `queue` bind late: what no replica should
take now waits in the gateway's fair queue, while no replica would start it.

How they compare, simulated on production traces: [simulator.md](simulator.md). This page is made from the
modules' own words (`STEERSMAN_UPDATE_DOCS=1 .venv/bin/pytest tests/test_docs.py`).
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
    return "\n".join([HEAD, *ours, about, *peers]).rstrip() + "\n"


def test_the_strategies_page_is_what_the_modules_say() -> None:
    """Formula, inputs, stale inputs and parameters of each."""
    if os.environ.get("STEERSMAN_UPDATE_DOCS"):
        DOC.write_text(page(), encoding="utf-8")
    assert DOC.read_text(encoding="utf-8") == page(), "write it anew: STEERSMAN_UPDATE_DOCS=1"


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_says_what_it_is(name: str) -> None:
    """Its module opens with its name and what it does."""
    module = inspect.getmodule(type(STRATEGIES[name]))
    assert module is not None
    assert (module.__doc__ or "").startswith(f"{name}: ")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_readme(name: str) -> None:
    """A command that nobody can read of is none."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"`steersman {re.escape(name)}\b", text), (
        f"README.md says nothing of 'steersman {name}'"
    )


PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "agents" / "README.md"})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_that_a_page_names_is_there(page: Path) -> None:
    """A newcomer who types what stands there is not told that there is no such command."""
    code = re.findall(r"```[a-z]*\n(.*?)```|`([^`\n]+)`", page.read_text(encoding="utf-8"), re.DOTALL)
    said = "\n".join(block or inline for block, inline in code)
    named = re.findall(r"(?:^|bin/|\| )steersman ([a-z][a-z-]*)", said, re.MULTILINE)
    assert set(named) <= set(COMMANDS), page


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """Files that are linked exist."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"
