"""Requests that the picker holds, and streams that end before their decision is out."""

from __future__ import annotations

import envoy_messages as envoy
from picker_world import CHAT, SECOND, B, World, body_of, head, piece, refused, said

from extproc.core.contract import LB_ENDPOINTS_KEY, LB_NAMESPACE
from extproc.wire.picker.exchange import PickerExchange
from extproc.wire.responder import Reply


def test_a_held_request_is_answered_whole_when_it_is_released() -> None:
    """Nothing goes out while it waits; then headers and body."""
    world = World(limit=1)
    running = [world.decide()[0], world.decide()[0]]
    exchange = PickerExchange(world.picker)
    exchange.receive(head())
    reply = exchange.receive(piece(CHAT, end=True))
    assert reply.wait
    assert said(reply) == []
    assert world.picker.bodies_bytes == len(CHAT)
    released: list[Reply] = []
    exchange.when_ready(released.append)
    running[1].close()
    (late,) = released
    first, *rest = said(late)
    assert envoy.metadata(first, LB_NAMESPACE) == {LB_ENDPOINTS_KEY: B}
    assert body_of(rest) == CHAT
    assert world.picker.bodies_bytes == 0


def test_the_deadline_ends_a_wait() -> None:
    """A late body is the sender's (408), a hold ours (429); neither leaves anything behind."""
    world = World(limit=1, deadline_ms=1_500)
    late = PickerExchange(world.picker)
    assert late.deadline_s == 1.5
    late.receive(head())
    late.receive(piece(CHAT[:5]))
    assert refused(late.overdue())[0] == 408
    late.close()
    world.decide()
    world.decide()
    held = PickerExchange(world.picker)
    held.receive(head())
    assert held.receive(piece(CHAT, end=True)).wait
    status, _, headers = refused(held.overdue())
    assert (status, headers["x-llm-d-request-dropped-reason"]) == (429, "rejected-ttl-expired")
    held.close()
    waiting = len(world.scheduler.dispatcher.queue)
    assert (waiting, world.picker.bodies_bytes, world.processor.deciding) == (0, 0, 0)


def test_a_shed_request_is_told_why() -> None:
    """When its class's hold is over before the deadline."""
    world = World(limit=1)
    world.decide()
    world.decide()
    held = PickerExchange(world.picker)
    held.receive(head())
    held.receive(piece(CHAT, end=True))
    released: list[Reply] = []
    held.when_ready(released.append)
    world.now_ns += 6 * SECOND
    world.scheduler.dispatcher.shed(now_ns=world.now_ns)
    status, _, headers = refused(released[0])
    assert (status, headers["x-llm-d-request-dropped-reason"]) == (429, "rejected-ttl-expired")


def test_a_client_that_leaves_before_the_decision() -> None:
    """Its body is forgotten, its place in the line given up."""
    world = World(limit=1)
    world.decide()
    world.decide()
    held = PickerExchange(world.picker)
    held.receive(head())
    held.receive(piece(CHAT, end=True))
    held.close()
    assert (len(world.scheduler.dispatcher.queue), world.picker.bodies_bytes) == (0, 0)
    assert world.outcomes == []


def test_a_decision_that_was_not_delivered_is_undone() -> None:
    """The stream broke while it was written."""
    world = World()
    exchange = PickerExchange(world.picker)
    exchange.receive(head())
    exchange.receive(piece(CHAT, end=True))
    assert len(world.scheduler.ledger) == 1
    exchange.close()
    assert len(world.scheduler.ledger) == 0
    assert (world.outcomes, world.scheduler.counts["cancelled"]) == ([], 1)
