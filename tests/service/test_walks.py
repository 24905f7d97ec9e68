"""The walks of docs/request.md, played on the service and compared call by call with what is drawn there."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "wire"))
import envoy_messages as envoy  # noqa: E402 (the folder comes onto the path first)

from extproc._pb import telemetry_pb2  # noqa: E402
from extproc.config.load import loads  # noqa: E402
from extproc.core.contract import DECISION_NAMESPACE  # noqa: E402
from extproc.service.app import App  # noqa: E402
from extproc.wire.exchange import Exchange  # noqa: E402
from extproc.wire.server import Server  # noqa: E402

PAGE = (ROOT / "docs" / "request.md").read_text(encoding="utf-8")
#: As the issue that asked for the page has it.
ROOMS_MAX, RETURNS_MAX = 8, 2
CONFIG = """
gateway: {auth: none}
tenants: [{name: anonymous, quota: {requests_per_minute: 100000}}]
telemetry: {auth: none, listen: ['127.0.0.1:50061']}
pools: [{name: p, models: [m], endpoints: [{address: 10.0.0.1:80}, {address: 10.0.0.2:80}]}]
"""
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()


@dataclass(frozen=True)
class Call:
    """One call over a module's border, by the rooms' names."""

    caller: str
    callee: str
    function: str


@dataclass(frozen=True)
class Walk:
    """A drawing: its rooms' modules, its arrows, and what is looked up beside them."""

    rooms: dict[str, tuple[str, ...]]
    arrows: list[Call]
    looked_up: set[str]

    @classmethod
    def drawn(cls, title: str) -> Walk:
        """The one below a heading of the page."""
        section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        rooms = {
            name: tuple(modules.split(", "))
            for name, modules in re.findall(r"participant (\w+) as [^<\n]+<br/>(.+)", section)
        }
        arrows = [Call(*found) for found in re.findall(r"^ +(\w+)->>(\w+): (\w+) \(", section, re.MULTILINE)]
        said = re.search(r"^Looked up on the way: (.+?)\.$", section, re.MULTILINE | re.DOTALL)
        assert said is not None
        return cls(rooms, arrows, set(re.findall(r"`([^`]+)`", said[1])))

    @property
    def returns(self) -> int:
        """Arrows into a room that was entered before."""
        entered = [next(iter(self.rooms)), *(arrow.callee for arrow in self.arrows)]
        return len(entered) - len(set(entered))

    def room_of(self, module: str) -> str:
        """Whose module it is; "" for one that is drawn nowhere."""
        fits = (
            name
            for name, modules in self.rooms.items()
            if any(module == each or (each.endswith("/") and module.startswith(each)) for each in modules)
        )
        return next(fits, "")


def module_of(frame: FrameType | None) -> str:
    """The file of a call, as the page names it; "" where it is none of ours."""
    file = frame.f_code.co_filename if frame is not None else ""
    ours = str(ROOT / "extproc") + "/"
    return file.removeprefix(ours) if file.startswith(ours) else ""


def calls_of(walk: Walk, play: Callable[[], object]) -> list[Call]:
    """Every call from one room into another's named modules; a helper is of the room that calls it first."""
    helpers: dict[str, str] = {}
    seen: set[FrameType] = set()
    calls: list[Call] = []

    def saw(frame: FrameType, event: str, _: object) -> None:
        # A generator that goes on is not called again.
        if event != "call" or frame in seen or not (module := module_of(frame)):
            return
        seen.add(frame)
        above = frame.f_back
        while above is not None and not module_of(above):
            above = above.f_back
        before = module_of(above)
        here = next(iter(walk.rooms)) if not before else walk.room_of(before) or helpers[before]
        there = walk.room_of(module)
        if not there:
            helpers.setdefault(module, here)
        elif there != here:
            calls.append(Call(here, there, frame.f_code.co_qualname))

    profiling = sys.getprofile()
    sys.setprofile(saw)
    try:
        play()
    finally:
        sys.setprofile(profiling)
    return calls


class Played:
    """A service that has seen a request and a report of each kind before, so that nothing is made anew."""

    def __init__(self) -> None:
        self.app = App(loads(CONFIG))
        self.server = Server(self.app.processor, settle=self.app.settle, message_bytes_max=1_000_000)
        for endpoint in self.app.scheduler.fleet.endpoints:
            endpoint.ready = True
        self.number = 0
        self.request(lambda receive: receive())
        self.report(lambda take: take())

    def request(self, watched: Callable[[Callable[[], Any]], Any]) -> bytes:
        """Decide on a request, its body `watched`; returns the record of its end."""
        exchange = Exchange(self.app.processor)
        exchange.receive(envoy.headers("POST", "/v1/chat/completions"))
        replies: list[Any] = []
        watched(lambda: replies.append(exchange.receive(envoy.body(CHAT))))
        exchange.delivered()
        exchange.close()
        answer = envoy.response(replies[0].data)
        message, entry = envoy.record()
        metadata = entry.common_properties.metadata.filter_metadata
        metadata[DECISION_NAMESPACE].update({"ticket": envoy.metadata(answer, DECISION_NAMESPACE)["ticket"]})
        entry.common_properties.duration.FromNanoseconds(500_000_000)
        entry.response.response_code.value = 200
        data: bytes = message.SerializeToString()
        return data

    def settlement(self, watched: Callable[[Callable[[], Any]], Any]) -> None:
        """A record comes on the access log's stream."""
        data = self.request(lambda receive: receive())

        watched(lambda: self.server.take_records(data))

    def report(self, watched: Callable[[Callable[[], Any]], Any]) -> None:
        """A node's agent pushes its next report."""
        self.number += 1
        now_unix_ms = int(time.time() * 1000)
        message = telemetry_pb2.Report(node="n1", boot_id=7, sequence=self.number, sent_unix_ms=now_unix_ms)
        message.replicas.add(address="10.0.0.1:80", pool="p", state=telemetry_pb2.READY)
        data, ingest, now_ns = message.SerializeToString(), self.app.agents.ingest, self.app.clock()
        assert ingest is not None
        take = ingest.take
        watched(lambda: take(data, None, now_ns=now_ns, now_unix_ms=now_unix_ms))
        assert ingest.counts["taken"] == self.number


WALKS = {
    "From the body to the answer": Played.request,
    "From the record to the event": Played.settlement,
    "From a report to a replica's health": Played.report,
}


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_is_as_it_is_drawn(title: str) -> None:
    """Each arrow is a call from the one room to the other, in that order; between them only what is told."""
    walk = Walk.drawn(title)
    found: list[Call] = []

    async def play() -> None:
        played = Played()
        WALKS[title](played, lambda call: found.extend(calls_of(walk, call)))

    asyncio.run(play())
    handed = [
        Call(call.caller, call.callee, call.function.rpartition(".")[2])
        for call in found
        if call.function not in walk.looked_up
    ]
    assert handed == walk.arrows
    assert walk.looked_up <= {call.function for call in found}, "told in vain"


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_is_short(title: str) -> None:
    """Few rooms, fewer returns, and as many as the page's table says."""
    walk = Walk.drawn(title)
    missing = [m for modules in walk.rooms.values() for m in modules if not (ROOT / "extproc" / m).exists()]
    assert missing == []
    assert {arrow.callee for arrow in walk.arrows} | {next(iter(walk.rooms))} == set(walk.rooms)
    assert len(walk.rooms) <= ROOMS_MAX
    assert walk.returns <= RETURNS_MAX
    told = re.findall(r"^\| [^|]+ \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert told[list(WALKS).index(title)] == (str(len(walk.rooms)), str(walk.returns))
