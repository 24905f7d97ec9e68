"""Live events: the whole first, then what changes; bounded, resumable, and nobody waits for a slow page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from extproc.admin.hub import DECISIONS_PER_ROUND, QUEUE_MAX, PageClient

Stand = Callable[..., None]
READER, WRITER = "reader-token-0123456789", "writer-token-0123456789"


async def until(events: Any, wanted: Callable[[str, Any], bool]) -> tuple[str, str, Any]:
    async for name, event, data in events:
        if wanted(event, data):
            return name, event, data
    raise AssertionError("the stream ended")


def test_the_whole_comes_first_then_what_has_changed(stand: Stand) -> None:
    """A drain shows within a second, in one endpoint alone; who knows it is not told again."""

    async def body(port: Any) -> None:
        async with port.events() as events:
            _, event, data = await anext(events)
            assert event == "snapshot"
            assert [each["address"] for each in data["endpoints"]] == ["10.0.0.1:80", "10.0.0.2:80"]
            assert {each["name"] for each in data["tenants"]} == {"acme", "globex"}
            assert data["tenants"][0]["limits"][0]["limit"]
            began = asyncio.get_running_loop().time()
            assert (await port.ask("POST", "api/v1/fleet/10.0.0.2:80/drain", body={}))[0] == 200
            _, _, data = await until(events, lambda event, data: event == "figures" and data["endpoints"])
            assert asyncio.get_running_loop().time() - began < 1.0
            assert [(each["address"], each["state"]) for each in data["endpoints"]] == [
                ("10.0.0.2:80", "draining")
            ]
            _, _, data = await until(events, lambda event, data: event == "figures")
            assert data["endpoints"] == []

    stand(body, ", auth: none")


def test_decisions_come_with_their_reasons(stand: Stand) -> None:
    """A burst is told up to a bound; the rest is counted."""

    async def body(port: Any) -> None:
        async with port.events() as events:
            await anext(events)
            reservation = port.admit()
            _, _, data = await until(events, lambda event, data: event == "decisions")
            (decision,) = data["decisions"]
            assert decision["id"] == reservation.id
            assert decision["tenant"] == "acme"
            assert decision["endpoint"] == reservation.address
            assert reservation.address in decision["reason"]
            for _ in range(DECISIONS_PER_ROUND + 5):
                port.settle(port.admit("globex"))
            _, _, data = await until(events, lambda event, data: event == "decisions")
            assert len(data["decisions"]) == DECISIONS_PER_ROUND
            assert data["left_out"] == 5

    stand(body)


def test_a_page_that_comes_back_gets_what_it_missed(stand: Stand) -> None:
    """By its last event's number; one that is not known any more gets the whole."""

    async def body(port: Any) -> None:
        async with port.events() as events:
            await anext(events)
            last, _, _ = await until(events, lambda event, data: event == "figures")
            reservation = port.admit()
        await asyncio.sleep(0.6)
        async with port.events(last_id=last) as events:
            missed = [await anext(events) for _ in range(2)]
            assert [event for _, event, _ in missed] == ["decisions", "figures"]
            assert missed[0][0].partition("-")[2] == str(int(last.partition("-")[2]) + 1)
            assert missed[0][2]["decisions"][-1]["id"] == reservation.id
        for unknown in ("beef-1", "nonsense", last.partition("-")[0] + "-999999"):
            async with port.events(last_id=unknown) as events:
                assert (await anext(events))[1] == "snapshot"

    stand(body)


def test_so_many_pages_of_one_client(stand: Stand, tokens: str) -> None:
    """A token has its places, whoever shows it, and another token has its own."""

    async def body(port: Any) -> None:
        async with port.events(READER) as first:
            await anext(first)
            status, found = await port.get("api/v1/events", READER)
            assert (status, found["error"]["code"]) == (429, "busy")
            async with port.events(WRITER) as other:
                assert (await anext(other))[1] == "snapshot"
        while port.app.administering.server.pages:  # noqa: ASYNC110 (a connection's end is another's event)
            await asyncio.sleep(0.05)
        async with port.events(READER) as again:
            assert (await anext(again))[1] == "snapshot"

    stand(body, ", events_per_client_max: 1" + tokens)


def test_so_many_pages_of_one_address(stand: Stand) -> None:
    """Who shows no token is told apart by the address."""

    async def body(port: Any) -> None:
        async with port.events() as first:
            await anext(first)
            assert (await port.get("api/v1/events"))[0] == 429

    stand(body, ", events_per_client_max: 1")


def test_so_many_pages_and_no_more(stand: Stand) -> None:
    """Above the bound 503; a page that leaves makes room."""

    async def body(port: Any) -> None:
        async with port.events() as first, port.events() as second:
            await anext(first)
            await anext(second)
            assert port.app.administering.server.pages == 2
            status, found = await port.get("api/v1/events")
            assert (status, found["error"]["code"]) == (503, "busy")
        while port.app.administering.server.pages:  # noqa: ASYNC110 (a connection's end is another's event)
            await asyncio.sleep(0.05)
        async with port.events() as events:
            assert (await anext(events))[1] == "snapshot"

    stand(body, ", events_clients_max: 2")


def test_a_page_that_does_not_read_is_let_go() -> None:
    """Its queue is bounded, and full means gone."""

    async def body() -> None:
        client = PageClient()
        assert all(client.tell(b"x") for _ in range(QUEUE_MAX))
        assert not client.gone.is_set()
        assert not client.tell(b"x")
        assert client.gone.is_set()

    asyncio.run(body())


def test_others_go_on_beside_a_slow_page(stand: Stand) -> None:
    """One that reads nothing is dropped and counted; one that reads has every event."""

    async def body(port: Any) -> None:
        hub = port.app.administering.server.hub
        async with port.events() as events:
            await anext(events)
            slow = await hub.join("")
            for _ in range(QUEUE_MAX + 1):
                hub._publish("experiments", [])
            assert slow.gone.is_set()
            assert hub.dropped == 2  # the reader had no turn meanwhile: it is let go as well, and comes back
        async with port.events() as events:
            assert (await anext(events))[1] == "snapshot"
            last, _, _ = await until(events, lambda event, data: event == "figures")
            assert last

    stand(body)


def test_nothing_is_built_while_nobody_looks(stand: Stand) -> None:
    """Without a page no figures are made."""

    async def body(port: Any) -> None:
        hub = port.app.administering.server.hub
        port.admit()
        await asyncio.sleep(0.6)
        assert hub._number == 0
        assert hub._tiles == {}

    stand(body)
