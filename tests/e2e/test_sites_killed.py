"""Kill -9 of the centre's and the edge's processes: what has a place is served, in mid-stream and before."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from gateway import KEYS, Gateway, logs_of_failed, wait_for
from two_sites import BIG, COMPLEX, SIMPLE, TwoSites, two_sites

pytestmark = pytest.mark.envoy

#: Requests under way at a kill; fewer than the centre's places.
UNDER_WAY = 6
#: What the edge may hold of a request that is cut: its `max_tokens`.
TOKENS = 20
CLIENTS, EACH = 4, 100


@pytest.fixture(scope="module")
def sites() -> Iterator[TwoSites]:
    with two_sites() as made:
        yield made


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest, sites: TwoSites) -> Iterator[None]:
    goes_there(sites)
    yield from logs_of_failed(request, sites)


def goes_there(sites: TwoSites) -> None:
    """The centre has word, room and trust again."""
    sites.connected()
    wait_for("the centre", lambda: sites.answered_by(text=COMPLEX) == "in the centre")


@contextmanager
def stream(sites: TwoSites) -> Iterator[http.client.HTTPResponse]:
    """An answer of the centre's that has begun, and goes on when `far.flows` is set."""
    sites.far.flows.clear()
    connection = http.client.HTTPConnection("127.0.0.1", sites.edge.port, timeout=60)
    body = {"model": BIG, "max_tokens": TOKENS, "stream": True}
    body["messages"] = [{"role": "user", "content": "hello"}]
    headers = {"authorization": f"Bearer {KEYS['acme']}", "content-type": "application/json"}
    with closing(connection):
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            assert b"w0" in answer.readline()
            yield answer
        finally:
            sites.far.flows.set()


def killed(gateway: Gateway, what: str) -> None:
    """Its service, its Envoy or both, with -9."""
    for name, child in (("service", gateway.service), ("envoy", gateway.envoy)):
        if what in (name, "both"):
            child.kill()


def back(gateway: Gateway, what: str) -> None:
    """They are started again."""
    if what in ("service", "both"):
        gateway.start_service()
    if what in ("envoy", "both"):
        gateway.envoy.start()
    wait_for("Envoy and the service", gateway.ready)


@pytest.mark.parametrize("what", ["service", "envoy", "both"])
def test_the_centre_is_killed(sites: TwoSites, what: str) -> None:
    """What is under way there without an answer, and what comes after, is served at home and charged once; it
    goes there again once the centre is back."""
    before = sites.edge.tenant("globex")["output_tokens"]
    found: list[tuple[int, str]] = []

    def ask() -> None:
        status, _, body = sites.ask(text=COMPLEX, key=KEYS["globex"])
        found.append((status, body["choices"][0]["message"]["content"] if status == 200 else str(body)))

    waiting = [threading.Thread(target=ask) for _ in range(UNDER_WAY)]
    asked = len(sites.far.seen)
    # The engine has them, and answers nothing.
    sites.far.open.clear()
    try:
        for each in waiting:
            each.start()
        # Most are there; the more are, the sooner one that comes late is served at home.
        wait_for("each its place", lambda: len(sites.far.seen) - asked + len(found) == UNDER_WAY)
        home = len(found)
        assert home < UNDER_WAY
        killed(sites.centre, what)
        for text in (SIMPLE, COMPLEX, COMPLEX):
            assert sites.answered_by(text=text) == "at the edge"
    finally:
        sites.far.open.set()
        for each in waiting:
            each.join()
        back(sites.centre, what)
    # Where only the service went its Envoy has their way, and they are answered there.
    there = UNDER_WAY - home if what == "service" else 0
    assert sorted(found) == [(200, "at the edge")] * (UNDER_WAY - there) + [(200, "in the centre")] * there
    goes_there(sites)
    charged = before + 3 * UNDER_WAY
    wait_for("the charges", lambda: sites.edge.tenant("globex")["output_tokens"] == charged)
    wait_for("the edge's books", sites.edge.quiet)
    wait_for("the centre's books", sites.centre.quiet)


@pytest.mark.parametrize("what", ["service", "envoy"])
@pytest.mark.parametrize("where", ["edge", "centre"])
def test_killed_in_mid_stream(sites: TwoSites, where: str, what: str) -> None:
    """A service's end cuts no stream, an Envoy's cuts it; all books close, by no more than was asked for."""
    gateway = getattr(sites, where)
    with stream(sites) as answer:
        before = sites.edge.tenant("acme")["output_tokens"]
        killed(gateway, what)
        if what == "service":
            sites.far.flows.set()
            assert b"[DONE]" in answer.read()
        else:
            with pytest.raises((http.client.HTTPException, OSError)):
                answer.read()
        back(gateway, what)
    wait_for("the edge's books", sites.edge.quiet)
    wait_for("the centre's books", sites.centre.quiet)
    # A new service begins to count anew.
    before = 0 if (where, what) == ("edge", "service") else before
    assert before <= sites.edge.tenant("acme")["output_tokens"] <= before + 2 * TOKENS


@pytest.mark.soak
def test_the_centre_is_killed_again_and_again(sites: TwoSites) -> None:
    """Simple and complex requests go on all the while: each is answered, but for answers that had begun, and
    charged once."""
    before = sites.edge.tenant("globex")["output_tokens"]
    found: Counter[tuple[str, int]] = Counter()
    over = threading.Event()
    kills = 0

    def client(number: int) -> None:
        for i in range(EACH):
            kind, text = (("simple", SIMPLE), ("complex", COMPLEX))[(i + number) % 2]
            try:
                status, _, _ = sites.ask(text=text, key=KEYS["globex"])
            except (OSError, http.client.HTTPException, ValueError):
                status = 0  # it broke off
            found[kind, status] += 1
            over.wait(0.05)

    clients = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for each in clients:
        each.start()
    for what in itertools.cycle(("service", "envoy", "both")):
        if not any(each.is_alive() for each in clients):
            break
        killed(sites.centre, what)
        kills += 1
        over.wait(0.3)
        back(sites.centre, what)
        over.wait(0.5)
    broken = found.pop(("complex", 0), 0)
    assert kills >= 3
    assert set(found) == {("simple", 200), ("complex", 200)}, found
    assert found["simple", 200] == CLIENTS * EACH // 2
    assert broken <= kills
    goes_there(sites)
    wait_for("the edge's books", sites.edge.quiet)
    wait_for("the centre's books", sites.centre.quiet)
    least = before + 3 * (CLIENTS * EACH - broken)
    assert least <= sites.edge.tenant("globex")["output_tokens"] <= least + TOKENS * broken
