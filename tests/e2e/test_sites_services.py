"""A centre of two services behind one Envoy, with Redis and without: one site to its edge, whichever service
decides, and when one of them is killed."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from gateway import KEYS, logs_of_failed, wait_for
from redis_harness import Redis
from two_sites import BIG, COMPLEX, SMALL, TwoSites, two_sites

from extproc.core.contract import SITE_HEADER
from extproc.core.remote.identity import issue

pytestmark = [pytest.mark.envoy, pytest.mark.slow]

SERVICES = 2
#: What the engine says that each answer has.
TOKENS = 3
#: As many times is a token shown, each time by a connection of its own: both services see it.
SHOWN = 16


@pytest.fixture(scope="module", params=["redis", "alone"])
def shared(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "redis")


@pytest.fixture(scope="module")
def sites(shared: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoSites]:
    with ExitStack() as stack:
        centre = {"services": SERVICES}
        if shared:
            redis = stack.enter_context(Redis(tmp_path_factory.mktemp("redis")))
            centre["sharing"] = {"redis": redis.url}
        made = stack.enter_context(two_sites(centre=centre))
        if shared:
            for i in range(SERVICES):
                wait_for("Redis", lambda i=i: made.centre.status(i)["quotas"]["connected"])
        yield made


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest, sites: TwoSites) -> Iterator[None]:
    sites.connected()
    wait_for("the centre", lambda: sites.answered_by(text=COMPLEX) == "in the centre")
    # Envoy knows of each whether it is well.
    both_take(sites, lambda: sites.ask(BIG))
    yield from logs_of_failed(request, sites)


def forwarded(sites: TwoSites) -> list[int]:
    """What each service has taken of the edge."""
    return [sites.centre.status(i)["counts"].get("site.forwarded", 0) for i in range(SERVICES)]


def both_take(sites: TwoSites, ask: Callable[[], object]) -> int:
    """Ask until both services have taken something; how often it took."""
    before, asked = forwarded(sites), 0

    def one() -> bool:
        nonlocal asked
        asked += 1
        ask()
        return all(now > then for now, then in zip(forwarded(sites), before, strict=True))

    wait_for("both services' turns", one)
    return asked


def quiet(sites: TwoSites) -> None:
    """The books of all services close."""
    wait_for("the edge's books", sites.edge.quiet)
    for i in range(SERVICES):
        wait_for(
            "the centre's books",
            lambda i=i: (
                sites.centre.status(i)["in_flight"] == 0
                and not any(each["in_flight_tokens"] for each in sites.centre.status(i)["endpoints"])
            ),
        )


def test_quotas_are_charged_once_whichever_service_decides(sites: TwoSites) -> None:
    """By the edge, for each request; and each is one trace through the service that took it."""
    before = sites.edge.tenant("globex")["output_tokens"]
    traces: list[str] = []

    def ask() -> None:
        traces.append(secrets.token_hex(16))
        parent = f"00-{traces[-1]}-{secrets.token_hex(8)}-01"
        headers = {"traceparent": parent}
        assert sites.answered_by(BIG, key=KEYS["globex"], headers=headers) == "in the centre"

    asked = both_take(sites, ask)
    wait_for("the charges", lambda: sites.edge.tenant("globex")["output_tokens"] == before + TOKENS * asked)
    for trace in traces:
        wait_for(
            "both sites' spans",
            lambda trace=trace: (
                Counter(span.name for span in sites.receiver.of(trace))["steersman.decide"] == 2
            ),
        )
    quiet(sites)


def test_a_token_is_taken_once_by_the_site_with_redis_and_once_by_each_service_without(
    sites: TwoSites, shared: bool
) -> None:
    """Whoever repeats it gets 401, and the engine hears nothing of it."""
    # A service that is late to a health check on a busy machine gets nothing until the next.
    both_take(sites, lambda: sites.ask(BIG))
    chat = {"model": SMALL, "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    token = issue("shop", "hub", sites.key, name=secrets.token_hex(8), now_s=time.time(), tenant="acme")
    seen = len(sites.far.seen)
    statuses: Counter[int] = Counter()
    taken = 1 if shared else SERVICES

    def shown() -> bool:
        for _ in range(SHOWN):
            headers = {SITE_HEADER: token}
            statuses[sites.centre.call("/v1/chat/completions", chat, key=None, headers=headers)[0]] += 1
        return statuses[200] >= taken

    wait_for("each that takes it", shown, timeout_s=20)
    assert statuses == {200: taken, 401: statuses.total() - taken}
    assert len(sites.far.seen) == seen + taken


def test_words_come_from_each_of_them(sites: TwoSites) -> None:
    """The edge's words come from both: they go on when either is killed, and the centre is never away."""
    for index in range(SERVICES):
        sites.centre.services[index].kill()
        try:
            before = sites.link["answers"]
            wait_for("words of the other one", lambda before=before: sites.link["answers"] > before + 3)
            assert (sites.link["away"], sites.link["trouble"]) == (False, "")
        finally:
            sites.centre.start_service(index)
        both_take(sites, lambda: sites.ask(BIG))


@contextmanager
def stream(sites: TwoSites) -> Iterator[http.client.HTTPResponse]:
    """An answer of the centre's that has begun, and goes on when `far.flows` is set."""
    connection = http.client.HTTPConnection("127.0.0.1", sites.edge.port, timeout=60)
    body = {"model": BIG, "max_tokens": 20, "stream": True}
    body["messages"] = [{"role": "user", "content": "hello"}]
    headers = {"authorization": f"Bearer {KEYS['globex']}", "content-type": "application/json"}
    with closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert b"w0" in answer.readline()
        yield answer


@pytest.mark.parametrize("index", range(SERVICES))
def test_one_is_killed(sites: TwoSites, index: int) -> None:
    """Streams that it has decided go on, what waits for the engine is answered, what comes is served there by
    the other one; each is charged once, and all books close."""
    before = sites.edge.tenant("globex")["output_tokens"]
    found: list[str] = []

    def ask() -> None:
        found.append(sites.answered_by(BIG, key=KEYS["globex"]))

    sites.far.flows.clear()
    waiting = [threading.Thread(target=ask) for _ in range(4)]
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(stream(sites)) for _ in range(4)]
            sites.far.open.clear()
            asked = len(sites.far.seen)
            for each in waiting:
                each.start()
            wait_for("each its place", lambda: len(sites.far.seen) == asked + len(waiting))
            sites.centre.services[index].kill()
            try:
                sites.far.open.set()
                for each in waiting:
                    each.join()
                after = [sites.answered_by(BIG, key=KEYS["globex"]) for _ in range(4)]
                sites.far.flows.set()
                assert all(b"[DONE]" in each.read() for each in streams)
            finally:
                sites.centre.start_service(index)
    finally:
        sites.far.open.set()
        sites.far.flows.set()
        for each in waiting:
            each.join()
    assert (found, after) == (["in the centre"] * 4, ["in the centre"] * 4)
    wait_for("the charges", lambda: sites.edge.tenant("globex")["output_tokens"] == before + 12 * TOKENS)
    quiet(sites)
