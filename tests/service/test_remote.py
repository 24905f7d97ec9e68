"""Other sites are asked once a second: what comes of answers that are none, and of files that change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from extproc.config.load import ConfigError, loads
from extproc.config.site_keys import FILE_BYTES_MAX, site_keys
from extproc.core.contract import SITE_HEADER, SITE_PATH
from extproc.core.outcome import LocalAnswer
from extproc.core.remote.digest import DIGEST_BYTES_MAX
from extproc.core.scheduler import Scheduler
from extproc.service.remote import SitesPart, site_policy
from extproc.upstream import PLAIN
from extproc.wire.sites import SiteDoor, SitePolicy
from tests.stand.schedulers import make_pool, make_scheduler
from tests.stand.waits import until
from tests.stand.web_server import listening

NEW, OLD = f"new {'n' * 32}\n", f"old {'o' * 32}\n"


def config_of(folder: Path) -> Any:
    text = f"""
gateway: {{auth: none}}
site: {{name: shop, peers: [{{name: hub, keys_file: {folder / "keys"}, forwards: true}}]}}
pools:
  - {{name: far, models: [m], endpoints: [{{address: "127.0.0.1:1"}}], remote: {{site: hub}}}}
"""
    return loads(text, name="x")


def parts(folder: Path, address: str = "127.0.0.1:1") -> tuple[Scheduler, SiteDoor, SitesPart]:
    config = config_of(folder)
    scheduler = make_scheduler(make_pool(address, name="far", site="hub"))
    scheduler.apply(scheduler.settings, now_ns=0)
    policy = site_policy(config, site_keys(config))
    assert policy is not None
    door = SiteDoor(scheduler, policy, wall=lambda: 1_000.0, clock=lambda: 0)
    part = SitesPart(
        config, scheduler, door=lambda: door, way=lambda _: (PLAIN, ""), clock=lambda: 0, wall=lambda: 1_000.0
    )
    return scheduler, door, part


async def asked(folder: Path, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """What the link says once a site has answered so."""
    app = web.Application()
    app.router.add_get(SITE_PATH, answer)
    async with listening(app) as address:
        scheduler, _, part = parts(folder, address)
        link = scheduler.sites.links.by_pool["far"]
        await part.start()
        try:
            await until(lambda: link.trouble != "not asked yet")
        finally:
            await part.stop()
    return link


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(OLD)
    return tmp_path


def test_what_the_other_site_signs_is_taken(folder: Path) -> None:
    """With how far its clock is ahead."""
    centre = make_scheduler(make_pool("10.0.0.1:80"))

    async def answer(request: web.Request) -> web.StreamResponse:
        config = config_of(folder)
        keys = site_keys(config)
        key = keys.signing["hub"]
        policy = SitePolicy(
            own="hub", forwards={"shop": None}, known={key.id: ("shop", key)}, signing={"shop": key}
        )
        door = SiteDoor(centre, policy, wall=lambda: 1_060.0, clock=lambda: 0)
        told = door.answer(request.headers[SITE_HEADER])
        assert isinstance(told, LocalAnswer)
        return web.Response(body=told.body)

    link = asyncio.run(asked(folder, answer))
    assert (link.trouble, link.away, round(link.offset_s)) == ("", False, 60)
    assert link.fresh(now_ns=0).of("m") is not None
    assert link.way_ns > 0


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (404, b"nothing here", "it answers 404: nothing here"),
        (200, b"no digest", "no signed token"),
        (200, b"x" * (DIGEST_BYTES_MAX + 1), "more than"),
        (302, b"", "it answers 302"),
        (401, b"y" * 10_000, "it answers 401: y"),
    ],
)
def test_an_answer_that_is_none(folder: Path, status: int, body: bytes, why: str) -> None:
    """It is said, in bounds; and somebody was reached."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    link = asyncio.run(asked(folder, answer))
    assert why in link.trouble
    assert len(link.trouble) < 500
    assert (link.away, link.refusals, link.digest) == (False, 1, None)


def test_who_is_not_reached_is_away(folder: Path) -> None:
    """After two questions, and the status says so."""

    async def run() -> None:
        scheduler, _, part = parts(folder)
        await part.start()
        link = scheduler.sites.links.by_pool["far"]
        try:
            await until(lambda: link.away)
        finally:
            await part.stop()
        status: Any = part.status()
        assert status["links"]["far"]["away"]
        assert status["own"] == "shop"

    asyncio.run(run())


def test_keys_are_read_again_and_a_bad_file_changes_nothing(folder: Path) -> None:
    """What was read last holds; the next good file is taken."""

    async def run() -> None:
        _, door, part = parts(folder)

        def write(text: str) -> None:
            (folder / "next").write_text(text)
            (folder / "next").replace(folder / "keys")

        def status() -> Any:
            return part.status()

        await part.start()
        try:
            write("bad\n")
            await until(lambda: status()["unusable"] != "")
            assert "n" * 32 not in status()["unusable"]
            assert door.policy.signing["hub"].id == "old"
            write(NEW + OLD)
            await until(lambda: door.policy.signing["hub"].id == "new")
            assert (status()["unusable"], set(door.policy.known)) == ("", {"new", "old"})
        finally:
            await part.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "why"), [(None, "cannot be read"), ("", "no key"), ("# " * FILE_BYTES_MAX, "bytes")]
)
def test_a_file_that_is_no_file_of_keys(tmp_path: Path, text: str | None, why: str) -> None:
    """The service does not begin, and says which file and setting."""
    if text is not None:
        (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match=why) as caught:
        site_keys(config_of(tmp_path))
    assert "site.peers[0].keys_file" in str(caught.value)
