"""The attacks on one gateway: bodies, keys, quotas, names, headers, reloads, a stopped service."""

from __future__ import annotations

import http.client
import json
import select
import signal
import socket
import threading
import time
from collections import Counter
from typing import Any

from gateway import wait_for

from extproc.history.follow import APART_S
from tests.attack.report import Report, attack
from tests.attack.stand import (
    CHAT,
    CURIOUS,
    DODGER,
    DODGER_TOKENS,
    EU,
    MALLORY,
    SPENT,
    SPENT_REQUESTS,
    VICTIM,
    Beside,
    Stand,
    say,
)

MEBI = 1024 * 1024
#: One of each kind of body whose pieces cost more to read than to send: path, before, unit, after.
BOMBS = (
    ("/v1/completions", b'{"model":"m","prompt":[', b"[]", b"]}"),
    ("/v1/completions", b'{"model":"m","prompt":["x",1,', b'""', b"]}"),
    ("/v1/completions", b'{"model":"m","prompt_embeds":[', b'""', b"]}"),
    (CHAT, b'{"model":"m","messages":[', b"{}", b"]}"),
    (CHAT, b'{"model":"m","messages":[{"content":[', b'""', b"]}]}"),
    (CHAT, b'{"model":"m","messages":[5,', b'{"content":""}', b"]}"),
    (CHAT, b'{"model":"m","messages":[{"content":"x"}],"tools":[', b"1", b"]}"),
    ("/generate", b'{"inputs":"x","a":[', b"[" * 400 + b"]" * 400, b"]}"),
)
JSON, FORM = "application/json", "multipart/form-data; boundary=b"
SOUND = (
    b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n?\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--b--\r\n'
)
#: Requests that name a model, which is "?" here: path, type and body.
NAMING = (
    (CHAT, JSON, b'{"model":"?","messages":[{"role":"user","content":"x"}]}'),
    (CHAT, JSON, b'{"model":"?"}'),
    (CHAT, JSON, b'{"model":"?","i\xf1puts":1,"messages":[{"role":"user","content":"x"}]}'),
    ("/tokenize", JSON, b'{"model":"?","prompt":"x"}'),
    ("/v1/messages", JSON, b'{"model":"?","max_tokens":3,"messages":[{"role":"user","content":"x"}]}'),
    ("/v1/responses", JSON, b'{"model":"?","input":"x"}'),
    ("/v1/embeddings", JSON, b'{"model":"?","input":"x"}'),
    ("/v1/rerank", JSON, b'{"model":"?","query":"x","documents":["x"]}'),
    ("/v1/audio/transcriptions", FORM, SOUND),
)
#: What a client sees that sends on after it was answered.
CUT_OFF = ("ConnectionResetError", "BrokenPipeError")


def filled(before: bytes, unit: bytes, after: bytes, size: int) -> bytes:
    """A body of a size, of as many units as go into it."""
    return before + b",".join([unit] * ((size - len(before) - len(after)) // (len(unit) + 1))) + after


@attack("bodies of a million pieces are refused, and the victim is served beside them")
def parse_bombs(stand: Stand, full: bool) -> Report:
    report = Report()
    size = 4 * MEBI - 200 if full else MEBI
    bombs = [(path, filled(before, unit, after, size)) for path, before, unit, after in BOMBS]
    lock, turn = threading.Lock(), iter(range(10**9))

    def throw() -> None:
        with lock:
            path, body = bombs[next(turn) % len(bombs)]
        status = stand.ask(path, body, MALLORY)[0]
        with lock:
            report.answer(status)

    if full:
        before_s: list[float] = []
        beside_s: list[float] = []
        seen = stand.victim(100, apart_s=0.05, took_s=before_s)
        with Beside(throw, threads=3):
            report.served(seen + stand.victim(200, apart_s=0.05, took_s=beside_s))
        alone, beside = (sorted(each)[int(0.99 * len(each))] for each in (before_s, beside_s))
        report.notes.append(
            f"the victim's p99 was {alone * 1e3:.0f} ms alone and {beside * 1e3:.0f} ms beside it"
        )
    else:
        with Beside(lambda: (stand.victim(1), time.sleep(0.05)), threads=1):
            for _ in bombs:
                throw()
        report.served(stand.victim(5))
    # Once its budget is spent a body is refused on its headers: who goes on sending is cut off, and who only
    # reads when all is sent sees that and not the 429. Each such is one that the service refused so.
    cut = sum(report.answered[name] for name in CUT_OFF)
    refused = sum(stand.counts("bound.refused_bytes_per_minute").values())
    report.holds(cut + report.answered[429] <= refused, f"{cut} bombs were cut off, {refused} refused unread")
    answers = {200, 400, 413, 422, 429, *CUT_OFF}
    report.holds(set(report.answered) <= answers, f"a bomb got {dict(report.answered)}")
    report.holds(not stand.counts("exception."), f"faults of ours: {stand.counts('exception.')}")
    return report


@attack("content cannot make a decision fail, and so is no way round a quota where failure_mode is open")
def content_that_fails(stand: Stand, full: bool) -> Report:
    report = Report()
    fields = (
        b'"model":"auto","i\xf1puts":1',
        b'"model":"auto","max_tokens":1' + b"0" * 400,
        b'"model":"auto","n":64,"max_tokens":1' + b"0" * 400,
        b'"model":"m","n":"6\\u0034","max_tokens":"1e999"',
        b'"model":"m","max_tokens":-1,"n_predict":{}',
        b'"model":"auto","temperature":NaN',
        b'"model":"m","stream":[[]],"tools":{"a":1e999}',
        b'"model":"m","x":"\\ud800"',
    )
    before, began_s = stand.engine.requests + stand.outside.requests, time.monotonic()
    for each in fields * (20 if full else 2):
        body = b"{" + each + b',"messages":[{"role":"user","content":"x"}]}'
        report.answer(stand.ask(CHAT, body, SPENT)[0])
    reached = stand.engine.requests + stand.outside.requests - before
    due = int(SPENT_REQUESTS * (1 + (time.monotonic() - began_s) / 60)) + 1
    report.notes.append(f"{reached} reached an engine; {due} were due")
    report.holds(reached <= due, f"{reached} requests passed a quota of {SPENT_REQUESTS} a minute")
    report.holds(not stand.counts("exception."), f"faults of ours: {stand.counts('exception.')}")
    return report


@attack("somebody's wrong keys keep nobody else out who comes from the same address")
def shared_address(stand: Stand, full: bool) -> Report:
    report = Report()
    for number in range(600 if full else 70):
        report.answer(stand.ask(CHAT, b"{}", f"wrong-{number}")[0])
        if number % 10 == 0:
            report.served(Counter([stand.ask(CHAT, say(), VICTIM)[0]]))
    report.holds(429 in report.answered, "wrong keys are not slowed down")
    return report


def leave(stand: Stand, body: dict[str, Any], events: int, name: str) -> int:
    """A stream that its client leaves after so many events; the status."""
    connection = http.client.HTTPConnection("127.0.0.1", stand.gateway.port, timeout=30)
    data = json.dumps(body)
    headers = {"authorization": f"Bearer {DODGER}", "content-type": "application/json"}
    shape = {"x-name": name, "x-tokens": "400", "x-gap-ms": "2", "x-shape": "vllm"}
    try:
        connection.request("POST", CHAT, data, headers | shape)
        answer = connection.getresponse()
        seen = 0
        while answer.status == 200 and seen < events and (line := answer.readline()):
            seen += line.startswith(b"data:")
        return answer.status
    finally:
        connection.close()


@attack("tokens are charged though the client hangs up: nobody gets much more than was bought")
def quota_dodging(stand: Stand, full: bool) -> Report:
    report = Report()
    bodies = (
        say(stream=True, max_tokens=400),
        say(stream=True, max_tokens="400", stream_options={"include_usage": True}),
        say(stream=1, max_tokens=400.0),
        say(stream=True, max_tokens=400, n=1, n_predict=1),
    )
    refused = 0
    for number in range(200 if full else 40):
        status = leave(stand, bodies[number % len(bodies)], 25, f"dodge-{number}")
        report.answer(status)
        refused = refused + 1 if status == 429 else 0
        if refused >= (10 if full else 3):
            break
        # What was left is charged by Envoy's record of it.
        wait_for("the record", stand.gateway.quiet)
    made = sum(n for name, n in stand.engine.written.items() if name.startswith("dodge-"))
    made += sum(n for name, n in stand.outside.written.items() if name.startswith("dodge-"))
    report.notes.append(f"{made} tokens were made for a quota of {DODGER_TOKENS} an hour")
    report.holds(refused, "the dodger was never refused")
    # The last one may begin with one token left, and a client is noticed to have left a few tokens late.
    report.holds(made <= 1.3 * DODGER_TOKENS + 60, f"{made} tokens were made of {DODGER_TOKENS} bought")
    return report


@attack("a tenant cannot find out which models others have, and a stranger nothing at all")
def names_of_others(stand: Stand, full: bool) -> Report:
    report = Report()
    said: dict[tuple[str, bytes], set[Any]] = {}
    # A model of others, a family of such models, and what is nowhere.
    for model in ("big", "large", "none"):
        for path, kind, asks in NAMING:
            body = asks.replace(b"?", model.encode())
            status, headers, answer = stand.ask(path, body, CURIOUS, content_type=kind)
            report.answer(status)
            told = sorted(name for name in headers if name not in ("date", "x-request-id", "content-length"))
            said.setdefault((path, asks), set()).add(
                (status, answer.replace(model.encode(), b"?").replace(b'"?"', b"'?'"), *told)
            )
    report.holds(404 in report.answered, "no model was asked for")
    differing = [key for key, answers in said.items() if len(answers) > 1]
    report.holds(not differing, f"a model of others is answered otherwise than none: {said}")
    connection = http.client.HTTPConnection("127.0.0.1", stand.gateway.port, timeout=10)
    connection.request("GET", "/health")
    said_health = connection.getresponse()
    health = said_health.read()
    connection.close()
    report.answer(said_health.status)
    report.holds(health == b'{"status":"ok"}', f"/health tells strangers {health!r}")
    return report


@attack("an engine cannot say what only the gateway may")
def headers_of_an_engine(stand: Stand, full: bool) -> Report:
    report = Report()
    said = {
        "x-steersman-model": "another",
        "X-Steersman-Anything": "x",
        "x-steersman-reason": "because",
        "x-own": "kept",
    }
    status, headers, _ = stand.ask(CHAT, say(), VICTIM, x_answer_headers=json.dumps(said))
    report.answer(status)
    ours = {n: v for n, v in headers.items() if n.startswith("x-steersman-")}
    report.holds(
        not set(said.values()) & set(ours.values()), f"the engine's words reached the client: {ours}"
    )
    report.holds("x-steersman-anything" not in headers, "a header of our kind came from the engine")
    report.holds(headers.get("x-own") == "kept", "the engine's own headers were lost")
    return report


@attack("whoever takes many live events of the admin page leaves places to others")
def places_of_live_events(stand: Stand, full: bool) -> Report:
    report = Report()
    held = []
    try:
        for _ in range(60 if full else 12):
            connection, status = stand.admin_get("/api/v1/events", "reader")
            held.append(connection)
            report.answer(status)
        connection, status = stand.admin_get("/api/v1/events", "other")
        held.append(connection)
        report.served(Counter([status]))
    finally:
        for connection in held:
            connection.close()
    report.holds(report.answered[200] <= 8, f"one client took {report.answered[200]} places")
    return report


@attack("reloads in a storm stop nobody, and the last file counts")
def reload_storm(stand: Stand, full: bool) -> Report:
    report = Report()
    gateway = stand.gateway
    before = gateway.status()["counts"].get("reload.applied", 0)
    storm, began = 200 if full else 15, time.monotonic()
    seen: Counter[Any] = Counter()
    with Beside(lambda: seen.update([stand.ask(CHAT, say(), VICTIM)[0]]), threads=1):
        for number in range(storm):
            gateway.config["classes"] = [{"name": "standard", "hold_ms": 1_000 + number}]
            gateway.write_config()
            gateway.service.signal(signal.SIGHUP)
            report.answer("signalled")
            time.sleep(0.02)

        def last() -> bool:
            return bool(gateway.status()["counts"].get("reload.applied", 0) > before)

        wait_for("a reload", last)
    report.served(seen)
    applied = gateway.status()["counts"]["reload.applied"] - before
    report.notes.append(f"{storm} signals were {applied} reloads")
    most = min(storm, 2 + (time.monotonic() - began) / APART_S)
    report.holds(1 <= applied <= most, f"{applied} reloads of {storm} signals")
    return report


@attack("without the service no prompt leaves its region, and none is served by a guess; then all goes on")
def stopped_service(stand: Stand, full: bool) -> Report:
    report = Report()
    gateway = stand.gateway
    before = stand.engine.requests + stand.outside.requests
    gateway.service.signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        for key in (EU, VICTIM, "wrong") * (5 if full else 1):
            report.answer(stand.ask(CHAT, say(), key)[0])
        took_s = (time.monotonic() - began_s) / report.tried
    finally:
        gateway.service.signal(signal.SIGCONT)
    reached = stand.engine.requests + stand.outside.requests - before
    report.notes.append(f"{took_s:.1f} s for an answer without the service")
    report.holds(not reached, f"{reached} prompts reached an engine that nobody chose for them")
    report.holds(set(report.answered) <= {503, 504}, f"without the service: {dict(report.answered)}")
    wait_for("the service", gateway.ready)
    report.served(stand.victim(5))
    return report


def first_lines(held: list[socket.socket], *, within_s: float) -> Counter[Any]:
    """How each connection's answer begins, if it comes in time."""
    waiting, seen, end_s = set(held), Counter[Any](), time.monotonic() + within_s
    while waiting and (left_s := end_s - time.monotonic()) > 0:
        for each in select.select(list(waiting), [], [], left_s)[0]:
            waiting.discard(each)
            try:
                seen[each.recv(12).decode(errors="replace").strip() or "closed"] += 1
            except OSError as error:
                seen[type(error).__name__] += 1
    seen["no answer"] += len(waiting)
    return +seen


@attack("bodies sent slowly by strangers hold no memory: a key is asked for before the body", quick=False)
def slow_uploads(stand: Stand, full: bool) -> Report:
    report = Report()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {4 * MEBI - 100}\r\n\r\n"
    ).encode()
    held = []
    try:
        for _ in range(300 if full else 20):
            each = socket.create_connection(("127.0.0.1", stand.gateway.port), timeout=10)
            each.sendall(head + b"x" * 1000)
            held.append(each)
        report.served(stand.victim(20))
        report.answered += first_lines(held, within_s=5.0)
        report.tried = len(held)
    finally:
        for each in held:
            each.close()
    report.holds(
        report.answered["HTTP/1.1 401"] + report.answered["HTTP/1.1 429"] == report.tried,
        f"strangers' bodies are waited for: {dict(report.answered)}",
    )
    return report
