"""Requests that are equal show as equal in the record, and nothing else of them does."""

from __future__ import annotations

from pathlib import Path

import envoy_messages as envoy
import pytest

from extproc.config.load import loads
from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer
from extproc.core.outcome import Outcome, Routed
from extproc.lab.replay.log import read
from extproc.service.app import App
from extproc.wire.exchange import Exchange
from tests.stand.cached import body_of


class Placed(Observer):
    """What was placed."""

    def __init__(self) -> None:
        self.routed: list[Routed] = []

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        self.routed.append(routed)


@pytest.mark.parametrize("repeats", [True, False])
def test_equal_requests_are_recorded_as_equal(tmp_path: Path, repeats: bool) -> None:
    """Two equal bodies have one hash, another body has another, no text is written, and off is off."""
    path, placed = tmp_path / "record.jsonl", Placed()
    text = f"""
gateway: {{auth: none}}
record: {{file: {path}, repeats: {str(repeats).lower()}}}
pools: [{{name: chat, models: [m], endpoints: [{{address: "10.0.0.1:80"}}]}}]
"""
    app = App(loads(text), clock=lambda: 1 << 40)
    app.scheduler.events.observers = (*app.scheduler.events.observers, placed)
    for said in ("a secret word", "a secret word", "another"):
        exchange = Exchange(app.processor)
        exchange.receive(envoy.headers("POST", "/v1/chat/completions"))
        exchange.receive(envoy.body(body_of(said)))
        reservation = placed.routed[-1].reservation
        ended = Outcome(reservation=reservation, final=True, status=200, output_tokens=5, response_bytes=345)
        app.settle(ended)
    app.record.watch(app.scheduler, now_ns=1 << 40)
    app.record.flush()
    rows = read(path).rows
    assert [row.answer_bytes for row in rows] == [345] * 3
    assert "secret" not in path.read_text(encoding="utf-8")
    first, second, third = (row.question for row in rows)
    if repeats:
        assert first == second != third
        assert all(len(each) == 16 for each in (first, third))
        assert {row.unfit for row in rows} == {""}
    else:
        assert first == second == third == ""
