"""Another site's token at several services: whoever comes second is refused before its body is read."""

from __future__ import annotations

import asyncio
from typing import Any

import envoy_messages as envoy
import grpc
import pytest
from serving import BODY, Running, running

from extproc.core.contract import SITE_HEADER
from extproc.core.remote.identity import LEEWAY_S, LIFE_S, issue
from extproc.core.remote.signing import SiteKey, by_id
from extproc.wire.server import TransportName
from extproc.wire.sites import SiteDoor, SitePolicy
from tests.stand.waits import until

KEY = SiteKey("k1", b"a" * 64)
NOW_S = 1_000_000.0


class Together:
    """What several services took."""

    def __init__(self) -> None:
        self.names: set[tuple[str, str]] = set()
        self.lives: list[float] = []
        self.fault: Exception | None = None

    async def first(self, site: str, name: str, *, life_s: float) -> bool:
        if self.fault is not None:
            raise self.fault
        self.lives.append(life_s)
        known = (site, name) in self.names
        self.names.add((site, name))
        return not known


@pytest.fixture(params=["http2", "grpcio"])
def transport(request: pytest.FixtureRequest) -> TransportName:
    """Each behaviour holds on both."""
    name: TransportName = request.param
    return name


def door(it: Running, shared: Together) -> None:
    policy = SitePolicy(own="hub", forwards={"shop": None}, known=by_id({"shop": (KEY,)}))
    it.processor.sites = SiteDoor(it.processor.scheduler, policy, wall=lambda: NOW_S, clock=lambda: 0)
    it.processor.sites.shared = shared


async def sent_on(it: Running, token: str) -> int:
    """The status that a request with this token gets; 200 where it is decided on."""
    call = it.exchange()
    await call.write(envoy.headers("POST", "/v1/completions", (SITE_HEADER, token)))
    answer: Any = envoy.response(await call.read())
    if answer.WhichOneof("response") == "immediate_response":
        return int(answer.immediate_response.status.code)
    await call.write(envoy.body(BODY))
    assert envoy.response(await call.read()).HasField("request_body")
    assert await call.read() is grpc.aio.EOF
    return 200


def test_a_token_is_taken_once_among_services(transport: TransportName) -> None:
    """The second service refuses it, and remembers nothing for longer than the token may hold."""

    async def play() -> None:
        shared = Together()
        async with running(transport=transport) as one, running(transport=transport) as other:
            for each in (one, other):
                door(each, shared)
            token = issue("shop", "hub", KEY, name="n", now_s=NOW_S, tenant="acme")
            assert await sent_on(one, token) == 200
            assert await sent_on(other, token) == 401
            assert other.processor.scheduler.counts["site.refused"] == 1
            await until(lambda: other.processor.open_exchanges == 0)
            assert shared.lives == [LIFE_S + LEEWAY_S] * 2

    asyncio.run(play())


def test_what_others_took_cannot_be_known(transport: TransportName) -> None:
    """A fault of ours lets it in by what this service knows itself."""

    async def play() -> None:
        shared = Together()
        shared.fault = RuntimeError("no store")
        async with running(transport=transport) as one:
            door(one, shared)
            token = issue("shop", "hub", KEY, name="n", now_s=NOW_S, tenant="acme")
            assert await sent_on(one, token) == 200
            assert await sent_on(one, token) == 401

    asyncio.run(play())
