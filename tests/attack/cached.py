"""Attacks on the response cache: another tenant's answers, and answers that no engine gave."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import grpc
from gateway import wait_for

from extproc.core.contract import EVENT_SERVICE, FILL_METHOD, RESERVATION_HEADER
from tests.attack.report import Report, attack
from tests.attack.stand import CHAT, MALLORY, VICTIM, Stand, say

#: What somebody may hope to be taken for another by, or to be answered as another.
DISGUISES: tuple[dict[str, str], ...] = (
    {},
    {"x_steersman_cache": "use"},
    {"x_steersman_cache": "refresh"},
    {"x_steersman_cache": f"hit; tenant={VICTIM}"},
    {"x_steersman_tenant": VICTIM},
    {"x_steersman_reservation": "1-1"},
    {"x_steersman_scope": f"tenant:{VICTIM}"},
)


def question(text: str, **more: Any) -> dict[str, Any]:
    """A chat that is deterministic."""
    asked = say(temperature=0, **more)
    asked["messages"][0]["content"] = text
    return asked


def said(text: str) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


def asks(stand: Stand, text: str, key: str, **headers: str) -> tuple[int | str, str, bytes]:
    """The engine answers with the asker's name; status, what is said of the cache, and the answer."""
    own = json.dumps(said(f"for {key}"))
    status, told, body = stand.ask(CHAT, question(text), key, x_say=own, **headers)
    return status, told.get("x-steersman-cache", ""), body


def kept(stand: Stand) -> int:
    """Answers that were kept so far."""
    count: int = stand.gateway.status()["cache"]["fills"].get("kept", 0)
    return count


@attack("an answer in the cache is given to its own tenant alone, whatever another one sends")
def answers_of_others(stand: Stand, full: bool) -> Report:
    report = Report()
    for number in range(20 if full else 1):
        for at, disguise in enumerate(DISGUISES):
            text, before = f"of others {number} {at} {time.time_ns()}", kept(stand)
            report.victim[asks(stand, text, VICTIM)[0]] += 1
            wait_for("the victim's answer is kept", lambda before=before: kept(stand) > before)
            status, told, body = asks(stand, text, MALLORY, **disguise)
            report.answer(status)
            report.holds(not told and VICTIM.encode() not in body, f"{disguise} got {told!r} {body[:80]!r}")
            status, told, body = asks(stand, text, VICTIM)
            report.holds(
                told.startswith("hit") and VICTIM.encode() in body, f"the victim got {told!r} {body!r}"
            )
    report.holds(set(report.victim) <= {200}, f"the victim got {dict(report.victim)}")
    return report


@attack("equal requests of two tenants at one time are two, and each gets its own answer")
def flights_of_others(stand: Stand, full: bool) -> Report:
    report = Report()
    for number in range(40 if full else 4):
        text, found = f"at once {number} {time.time_ns()}", list[tuple[str, bytes]]()
        gate = threading.Barrier(6)

        def one(key: str, text: str = text, found: list[Any] = found, gate: Any = gate) -> None:
            gate.wait(30)
            status, _, body = asks(stand, text, key)
            report.answer(status)
            found.append((key, body))

        threads = [threading.Thread(target=one, args=(key,)) for key in (VICTIM, MALLORY) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrong = [(key, body[:90]) for key, body in found if f"for {key}".encode() not in body]
        report.holds(len(found) == 6 and not wrong, f"somebody got another's answer: {wrong}")
    return report


@attack("nobody but Envoy puts an answer into the cache, and none for another's question")
def forged_fills(stand: Stand, full: bool) -> Report:
    report = Report()
    forged = json.dumps(said("FORGED")).encode()
    seals = ["", "x", "1-1", "A" * 43, "\t", *[f"r{number}" for number in range(200 if full else 10)]]
    text, before = f"forged {time.time_ns()}", kept(stand)
    with grpc.insecure_channel(stand.gateway.service_address) as channel:
        fill = channel.unary_unary(f"/{EVENT_SERVICE}/{FILL_METHOD}")
        for seal in [None, *seals]:
            metadata = [] if seal is None else [(RESERVATION_HEADER, seal.strip())]
            try:
                report.answer(fill(forged, metadata=metadata, timeout=20))
            except grpc.RpcError as error:
                report.answer(error.code().name)
    report.holds(kept(stand) == before, "a forged answer was kept")
    status, told, body = asks(stand, text, VICTIM)
    report.victim[status] += 1
    report.holds(not told and b"FORGED" not in body, f"the victim got {told!r} {body[:80]!r}")
    # At the public port there is no such call.
    path = f"/{EVENT_SERVICE}/{FILL_METHOD}"
    status, _, body = stand.ask(path, forged, MALLORY, x_steersman_reservation="1-1")
    report.answer(status)
    report.holds(status in (404, 405), f"{path} is answered {status} {body[:80]!r}")
    # What an engine says cannot make its answer another's, nor name it cached.
    headers = json.dumps({"x-steersman-cache": "hit; age=0", "x-steersman-reservation": "1-1"})
    _, told, _ = asks(stand, f"engine {time.time_ns()}", MALLORY, x_answer_headers=headers)
    report.holds(not told, f"an engine's answer says that it is cached: {told!r}")
    return report


@attack("who may not give orders purges nothing and reads nothing of the cache")
def purges_of_others(stand: Stand, full: bool) -> Report:
    report = Report()
    text, before = f"purges {time.time_ns()}", kept(stand)
    asks(stand, text, VICTIM)
    wait_for("the victim's answer is kept", lambda: kept(stand) > before)
    order = json.dumps({"tenant": VICTIM, "all": True}).encode()
    for path in ("/api/v1/orders/PurgeCache", "/api/v1/orders/Cache", "/PurgeCache") * (10 if full else 1):
        status, _, body = stand.ask(path, order, MALLORY)
        report.answer(status)
        report.holds(status in (401, 403, 404, 405), f"{path} is answered {status} {body[:80]!r}")
    status, told, _ = asks(stand, text, VICTIM)
    report.victim[status] += 1
    report.holds(told.startswith("hit"), "the victim's answer is gone")
    return report
