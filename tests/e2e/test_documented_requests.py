"""Every `curl` of README and docs, as it stands, through the real Envoy, against the engine that it names.

The gateway is README's own configuration. What a reader puts in is put in here too: keys, and the addresses
of this test. A block that begins with `# 401: …` promises that status, any other one 200.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from documents import PAGES, Block, blocks, name_of
from gateway import Gateway, free_ports
from replicas import Replicas, specs

from extproc.config.types import HASH_PLACEHOLDER
from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

ROOT = Path(__file__).resolve().parents[2]
KEY, TOKEN, COMPOSE_KEY = "sk-steer-a-readers", "an-operators-token", "sk-steer-compose-acme"
#: docs/quickstart.md has a test of its own, which starts what it says.
ELSEWHERE = ("docs/quickstart.md",)
#: curl as it is, with its answers' headers kept and an end; the stream of events has none of its own.
CURL = """
curl() {
  local most=60
  case "$*" in */events*) most=3 ;; esac
  command curl -sS -m $most -D "$(mktemp "$HEADERS/XXXXXX")" "$@"
}
"""


def curls() -> list[tuple[str, Block]]:
    """(page, block) of each block with a curl in it."""
    return [
        (name_of(page), block)
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"))
        if re.search(r"^\s*curl ", block.text, re.MULTILINE) and name_of(page) not in ELSEWHERE
    ]


CURLS = curls()


@dataclass
class World:
    """A started gateway, its admin port, its replicas' addresses."""

    gateway: Gateway
    admin: str
    replicas: list[str]

    def here(self, text: str) -> str:
        """A block with this world's addresses in place of the page's."""
        text = text.replace("http://127.0.0.1:8080", self.gateway.url)
        text = text.replace("127.0.0.1:9090", self.admin).replace("10.0.0.11:8000", self.replicas[1])
        return text.replace("sk-steer-…", KEY)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """README's configuration, over replicas of the engine that it names; and compose's model and key."""
    (readme,) = [b for b in blocks((ROOT / "README.md").read_text(encoding="utf-8")) if b.language == "yaml"]
    config = yaml.safe_load(readme.text.replace(HASH_PLACEHOLDER, hash_key(KEY)))
    (pool,) = config["pools"]
    assert pool["engine"] == "tgi"
    (admin,) = free_ports(1)
    with Replicas(specs(2, model_id=pool["models"][0]) + specs(1, model_id="sim-8b")) as replicas:
        addresses = replicas.addresses
        endpoints = [{**each, "address": a} for each, a in zip(pool["endpoints"], addresses[:2], strict=True)]
        pools = {
            pool["name"]: {
                **{k: v for k, v in pool.items() if k not in ("name", "endpoints")},
                "addresses": endpoints,
            },
            "compose": {"models": ["sim-8b"], "engine": "tgi", "addresses": addresses[2:]},
        }
        tenants = [*config["tenants"], {"name": "compose", "keys": [{"sha256": hash_key(COMPOSE_KEY)}]}]
        tokens = [{"name": "reader", "sha256": hash_key(TOKEN), "scope": "write"}]
        section = {"listen": f"127.0.0.1:{admin}", "tokens": tokens}
        with Gateway(pools, tenants=tenants, admin=section) as gateway:
            yield World(gateway, f"127.0.0.1:{admin}", addresses)


def statuses(text: str, folder: Path) -> tuple[list[int], subprocess.CompletedProcess[str]]:
    """What the answers' first lines say, and how the shell ended."""
    headers = folder / "headers"
    headers.mkdir()
    done = subprocess.run(
        ["bash", "-c", CURL + text],
        env={**os.environ, "STEERSMAN_KEY": KEY, "TOKEN": TOKEN, "HEADERS": str(headers)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return [int(each.read_text().split()[1]) for each in headers.iterdir()], done


@pytest.mark.parametrize(("page", "block"), CURLS, ids=[f"{page}:{block.line}" for page, block in CURLS])
def test_a_documented_request_is_answered_as_promised(
    world: World, page: str, block: Block, tmp_path: Path
) -> None:
    """Typed as it stands there."""
    if page == "docs/cli.md":
        lines = [line for line in block.text.splitlines() if line.strip().startswith("curl ")]
        text = "\n".join(lines).replace("127.0.0.1:8080", world.replicas[0])  # a replica's own port there
    else:
        text = world.here(block.text)
    promised = re.match(r"# (\d{3}): ", block.text)
    found, done = statuses(text, tmp_path)
    assert len(found) == len(re.findall(r"^\s*curl ", text, re.MULTILINE)), done
    assert set(found) == {int(promised[1]) if promised else 200}, (done.stdout, done.stderr)
    assert done.returncode == (28 if "/events" in text else 0), done.stderr
    assert done.stdout.strip()
    if "/drain" in text:
        assert world.gateway.endpoint(world.replicas[1])["draining"]
        assert world.gateway.order("Drain", address=world.replicas[1], draining=False) == {"found": True}


def test_the_pages_have_requests() -> None:
    """Of README, of the API and of the admin port; and statuses other than 200."""
    assert {"README.md", "docs/api.md", "docs/admin.md", "docs/deploy.md"} <= {page for page, _ in CURLS}
    assert sum(block.text.startswith("# 4") for _, block in CURLS) >= 2


def test_the_quick_starts_python_gets_an_answer(world: World) -> None:
    """The OpenAI client with the base address that the page says."""
    (block,) = [b for b in blocks((ROOT / "docs/quickstart.md").read_text("utf-8")) if b.language == "python"]
    done = subprocess.run(
        [sys.executable, "-c", world.here(block.text)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_browsers_preflight_is_not_granted(world: World) -> None:
    """docs/security.md: a page of another site cannot declare JSON, since nobody answers its preflight."""
    status, headers, _ = world.gateway.call(
        "/v1/chat/completions",
        method="OPTIONS",
        key=None,
        headers={
            "origin": "https://elsewhere.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        },
    )
    assert status >= 400
    assert not [name for name in headers if name.startswith("access-control-")]
