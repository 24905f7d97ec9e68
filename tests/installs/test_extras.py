"""Each set of extras as if nothing else were installed: what cannot work says so in one line."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from extproc.cli import COMMANDS
from extproc.extras import EXTRAS, MissingExtraError, explained, need, needed

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = {"extproc": ROOT / "extproc", "steersman_agent": ROOT / "agents" / "steersman_agent"}
#: Modules that may need an extra at their import → the extra. Whoever imports one of them does it late.
BEHIND = {
    # numpy is of both; whoever serves is told of the extra `semantic` before any of these is imported.
    "extproc.cache.semantic.index": "lab",
    "extproc.cache.semantic.learned": "lab",
    "extproc.cache.semantic.model": "lab",
    "extproc.demo.clients": "demo",
    "extproc.demo.run": "demo",
    "extproc.demo.traffic": "demo",
    "extproc.lab.scaling.cases": "lab",
    "extproc.lab.scaling.check": "lab",
    "extproc.lab.scaling.measure": "lab",
    "extproc.lab.scaling.oracle": "lab",
    "extproc.lab.scaling.ours": "lab",
    "extproc.lab.scaling.peers": "lab",
    "extproc.lab.scaling.play": "lab",
    "extproc.lab.scaling.rates": "lab",
    "extproc.lab.scaling.replicas": "lab",
    "extproc.lab.scaling.report": "lab",
    "extproc.lab.scaling.requests": "lab",
    "extproc.lab.scaling.service": "lab",
    "extproc.lab.scaling.smooth": "lab",
    "extproc.lab.scaling.traffic": "lab",
    "extproc.lab.scaling.weeks": "lab",
    "extproc.cache.redis.answers": "redis",
    "extproc.cache.redis.asked": "redis",
    "extproc.cache.redis.line": "redis",
    "extproc.cache.redis.looks": "redis",
    "extproc.cache.redis.question_scripts": "redis",
    "extproc.cache.redis.question_session": "redis",
    "extproc.cache.redis.questions": "redis",
    "extproc.cache.redis.scripted": "redis",
    "extproc.cache.redis.scripts": "redis",
    "extproc.cache.redis.session": "redis",
    "extproc.observe.analytics.redis_store": "redis",
    "extproc.state.kept_redis": "redis",
    "extproc.state.quota.books": "redis",
    "extproc.state.quota.loans": "redis",
    "extproc.state.quota.questions": "redis",
    "extproc.state.quota.reconcile": "redis",
    "extproc.state.quota.scripts": "redis",
    "extproc.state.quota.session": "redis",
    "extproc.state.redis_client": "redis",
    "extproc.state.redis_session": "redis",
    "extproc.state.redis_share": "redis",
    "extproc.state.shared_key": "redis",
    "extproc.state.taken": "redis",
}
#: Seconds for a child process on a busy machine; a quiet one takes about ten.
CHILD_S_MAX = 240
BASE = """
gateway: {auth: none, listen: "127.0.0.1:1", envoy_admin: "127.0.0.1:2", services: ["127.0.0.1:3"]}
service: {listen: ["127.0.0.1:3"]}
pools: [{name: p, models: [m], endpoints: [{address: "127.0.0.1:4"}]}]
"""


def modules() -> list[str]:
    """Every module of both packages, but those that run when they are imported."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[-1] == "__main__" and "__name__" not in path.read_text(encoding="utf-8"):
                continue
            found.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return found


def closure(requirements: Iterable[str]) -> set[str]:
    """The distributions that these need, as they are installed here, themselves included."""
    found: set[tuple[str, str]] = set()
    asked = [(Requirement(each), "") for each in requirements]
    while asked:
        requirement, by = asked.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": by}):
            continue
        for extra in {"", *requirement.extras}:
            name = canonicalize_name(requirement.name)
            if (name, extra) not in found:
                found.add((name, extra))
                needs = own(extra) if name == "steersman" else metadata.requires(name) or []
                asked += [(Requirement(each), extra) for each in needs]
    return {name for name, _ in found} - {"steersman"}


def own(extra: str) -> list[str]:
    """What pyproject.toml asks for: an installation's metadata may be older."""
    wanted: list[str] = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return wanted


def tops(distributions: set[str]) -> set[str]:
    """The top-level modules that they bring."""
    found = set()
    for name in distributions:
        for file in metadata.files(name) or []:
            if file.suffix in (".py", ".so", ".pyi"):
                found.add(file.parts[0].partition(".")[0])
    return found - {""}


def only(extra: str, **wanted: Any) -> Any:
    """`only.py`'s answer where the base and one extra ("": none) are installed."""
    every = {canonicalize_name(each.name) for each in metadata.distributions()} - {"steersman"}
    there = tops(closure([*own(""), *(own(extra) if extra else [])]))
    absent = sorted(tops(every) - there)
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
    # A file holds what a pipe once lost: 160 kB that a child writes at its end.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("only.py"))],
            input=json.dumps({"absent": absent, **wanted}),
            stdout=said,
            stderr=subprocess.PIPE,
            text=True,
            timeout=CHILD_S_MAX,
            check=False,
            cwd=ROOT,
            # An Envoy on PATH would be found, and it is not the extra's.
            env={**env, "PATH": "/nowhere"},
        )
        assert done.returncode == 0, done.stderr
        said.seek(0)
        return json.loads(said.read().splitlines()[-1])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Configurations that ask for this and that."""
    folder = tmp_path_factory.mktemp("files")
    texts = {
        "base": BASE,
        "sharing": BASE + "sharing: {redis: 'redis://127.0.0.1:1/0'}\n",
        "otel": BASE + "otel: {endpoint: 'http://127.0.0.1:1'}\n",
        "agent": "node: n\nservices: ['127.0.0.1:1']\nreplicas: []\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return {name: str(folder / f"{name}.yaml") for name in texts}


#: What has to work without extras.
GOOD = [
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in COMMANDS),
    *(["check", "-f", f"{{{name}}}"] for name in ("base", "sharing", "otel")),
    ["envoy-config", "-f", "{sharing}", "--format", "json"],
    ["agent", "-f", "{agent}", "--check"],
    ["sim-replica", "--hardware", "list"],
    ["simulate", "--fleet", "list"],
    ["tenant", "key", "new"],
    ["completion", "bash"],
]
#: What is run without extras → the extra that it names.
LACKING = {
    ("serve", "-f", "{sharing}"): "redis",
    ("serve", "-f", "{otel}"): "otel",
    ("up", "-f", "{base}", "--no-table"): "envoy",
    ("demo", "--smoke"): "demo",
    ("agent", "--once"): "agent",
    ("agent", "-f", "{agent}"): "agent",
    ("tune", "{base}"): "lab",
    ("simulate", "--out", "{folder}"): "lab",
    ("simulate", "--campaign", "--quick", "--out", "{folder}"): "lab",
}


@dataclass(frozen=True)
class Bare:
    """What happened in one process without any extra."""

    imports: dict[str, list[str | None] | None]
    commands: dict[tuple[str, ...], dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def bare(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """Every module is imported and every command run, once for all tests here."""
    folder = tmp_path_factory.mktemp("bare") / "out"
    every = [*map(tuple, GOOD), *LACKING]
    commands = [[word.format(**files, folder=folder) for word in words] for words in every]
    found = only("", imports=modules(), commands=commands)
    return Bare(found["imports"], dict(zip(every, found["commands"], strict=True)), folder)


@pytest.mark.timeout(CHILD_S_MAX + 30)
def test_every_module_imports_from_the_base_or_names_its_extra(bare: Bare) -> None:
    """Those that need an extra are few, listed, and say which; nothing imports what nobody declares."""
    failed = {name: why for name, why in bare.imports.items() if why is not None}
    named = {name: re.search(r"the extra '([\w-]+)'", why[2] or "") for name, why in failed.items()}
    assert {name: failed[name] for name, extra in named.items() if extra is None} == {}
    assert {name: extra and extra[1] for name, extra in named.items()} == BEHIND


@pytest.mark.timeout(CHILD_S_MAX + 30)
def test_the_base_alone_has_help_checks_and_renders(bare: Bare) -> None:
    """The version, every command's help, and what looks at files: no extra, no traceback."""
    done = {tuple(argv): bare.commands[tuple(argv)] for argv in GOOD}
    assert {argv: each for argv, each in done.items() if each["code"] != 0} == {}
    assert "Traceback" not in "".join(each["said"] for each in done.values())


@pytest.mark.parametrize("words", LACKING, ids=" ".join)
@pytest.mark.timeout(CHILD_S_MAX + 30)
def test_a_missing_extra_is_one_line_and_exit_code_2(bare: Bare, words: tuple[str, ...]) -> None:
    """Whatever command meets it; the line says what to install, and where; nothing is begun before."""
    done = bare.commands[words]
    lines = done["said"].splitlines()
    assert done["code"] == 2, done
    assert f"pip install 'steersman[{LACKING[words]}]' (in {sys.prefix})" in lines[-1]
    assert len([line for line in lines if "extra" in line]) == 1, lines
    assert "Traceback" not in done["said"]
    assert not bare.folder.exists()


@pytest.mark.parametrize("extra", sorted(set(BEHIND.values())))
@pytest.mark.timeout(CHILD_S_MAX + 30)
def test_with_its_extra_alone_it_imports(extra: str) -> None:
    """A module behind an extra needs no other."""
    behind = [name for name, behind in BEHIND.items() if behind == extra]
    assert only(extra, imports=behind)["imports"] == dict.fromkeys(behind)


def test_the_table_is_pyprojects() -> None:
    """The same extras; each one's modules come with its packages."""
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"])
    assert not [extra for extra, each in EXTRAS.items() if not each.modules]
    every = [module for each in EXTRAS.values() for module in each.modules]
    # A package may be part of two extras; one of them is named where its module is missing.
    assert len(every) == len(set(every))
    for extra, each in EXTRAS.items():
        brought = tops(closure([*own(""), *own(extra)])) - tops(closure(own("")))
        assert {module.partition(".")[0] for module in each.modules} <= brought, extra


def test_the_page_is_pyprojects() -> None:
    """docs/install.md has a row for each extra, in pyproject's order, and a sentence in it."""
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(PROJECT["optional-dependencies"])
    assert all(re.fullmatch(r"[A-Z`].*\.", sentence) for _, sentence in rows), rows


NAMED = re.compile(r"""(?:\bsteersman|['" ]\.|\.whl)\[([a-z, ]+)\]""")
PLACES = ["README.md", "CONTRIBUTING.md", "docs", "agents", "deploy", "examples", "extproc", "tests"]


@pytest.mark.parametrize("where", PLACES)
def test_every_extra_that_is_named_exists(where: str) -> None:
    """In pages, messages and comments: whoever types it gets what is promised."""
    top = ROOT / where
    folder = [path for end in ("md", "py", "js", "yaml") for path in top.rglob(f"*.{end}")]
    for path in [top] if top.is_file() else folder:
        for names in NAMED.findall(path.read_text(encoding="utf-8")):
            unknown = {name.strip() for name in names.split(",")} - {*EXTRAS, "extra"}
            assert not unknown, f"{path}: {names}"


def test_no_page_installs_it_from_an_index() -> None:
    """It is published nowhere: pages install from a clone or a wheel. docs/install.md explains the one line
    that names the distribution: what an installed program says of an extra that it lacks."""
    named = ("README.md", "CONTRIBUTING.md", "agents/README.md")
    for page in [*(ROOT / name for name in named), *ROOT.glob("docs/*.md")]:
        said = re.findall(r"pip install .*\bsteersman(?:\[|$|\s).*", page.read_text(encoding="utf-8"))
        assert page.name == "install.md" or not said, page


def of_imports(handler: ast.ExceptHandler) -> bool:
    """Whether it catches that a module is not there."""
    caught = ast.unparse(handler.type) if handler.type is not None else ""
    return "ModuleNotFoundError" in caught or "ImportError" in caught


def test_messages_are_made_in_one_place() -> None:
    """No code of ours writes a `pip install` of its own extras; what may be missing is caught nowhere else,
    but for uvloop and ngh2, which not every platform has, and without which all works."""
    without = {"import uvloop", "from extproc.wire.http2 import Http2Transport"}
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            if path.name == "extras.py" or "_pb" in path.parts:
                continue
            text = path.read_text(encoding="utf-8")
            assert "pip install 'steersman" not in text, path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Try) and any(map(of_imports, node.handlers)):
                    assert without & set(map(ast.unparse, node.body)), f"{path}:{node.lineno}"


def test_what_is_no_extras_stays_an_error() -> None:
    """A module that belongs to none, and one whose name only begins alike."""
    assert explained(ModuleNotFoundError("No module named 'rediscover'", name="rediscover")) is None
    assert explained(ModuleNotFoundError("no name")) is None
    assert explained(ModuleNotFoundError(name="redis.asyncio")) == needed("redis")
    assert explained(ModuleNotFoundError(name="opentelemetry")) == needed("otel")


def test_what_is_there_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`need` is silent for an extra that is installed, and says the way out that it is given."""
    need("redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"x needs the extra 'redis': .*; or leave it"):
        need("redis", by="x", instead="leave it")
