"""refusals.py: a 429 as each client library shows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp.web
import pytest

from extproc.demo.clients import WAYS, Call, ClientSample, TenantClients, Way
from extproc.demo.refusals import Refusal, refusal
from tests.stand.web_server import listening, one_page

OPENAI = {"error": {"message": "spent", "type": "rate_limit_error", "param": None, "code": "quota_exceeded"}}
TGI = {"error": "spent", "error_type": "quota_exceeded"}


@asynccontextmanager
async def refusing(status: int) -> AsyncIterator[str]:
    """A server that refuses everything, in the dialect of the route; its address."""

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.Response:
        body = OPENAI if request.path.startswith("/v1/") else TGI
        return aiohttp.web.json_response(body, status=status, headers={"retry-after": "7"})

    async with listening(one_page(answer)) as address:
        yield f"http://{address}"


async def raised(way: Way, status: int) -> Exception:
    """What the real client raises."""
    async with refusing(status) as url:
        clients = TenantClients(url, key="k", models=["m"])
        call = Call(tenant="t", way=way, model="m", prompt="Ahoy!", output_tokens=3)
        try:
            with pytest.raises(Exception) as caught:  # noqa: PT011 (three libraries' own)
                await clients.send(call, ClientSample())
        finally:
            await clients.close()
        return caught.value


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.client} {way.route} {way.stream}")
def test_every_client_shows_a_spent_quota(way: Way) -> None:
    """By whichever route, streamed or not; text-generation alone does not tell how long to wait."""
    told = refusal(asyncio.run(raised(way, 429)))
    assert told == Refusal("quota_exceeded", None if way.client == "text-generation" else 7.0)
    assert told.by_quota


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.client} {way.route} {way.stream}")
def test_no_other_status_is_a_refusal(way: Way) -> None:
    """A 503 is a failure, whatever its body says."""
    error = asyncio.run(raised(way, 503))
    if way.client == "text-generation":
        assert type(error).__name__ != "RateLimitExceededError"
    assert refusal(error) is None


def test_want_of_room_is_not_want_of_quota() -> None:
    """A 429 with another code is told from a quota's."""

    class OverloadedError(Exception):
        status_code = 429
        code = "overloaded"

    told = refusal(OverloadedError())
    assert told == Refusal("overloaded", None)
    assert not told.by_quota
    assert refusal(ValueError("429")) is None
