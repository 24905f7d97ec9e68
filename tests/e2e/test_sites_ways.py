"""Two sites with 5, 40 and 150 ms of way between them, while the way is cut again and again, or stalls."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from gateway import KEYS, wait_for
from two_sites import BIG, COMPLEX, SIMPLE, two_sites

pytestmark = pytest.mark.envoy

CLIENTS, EACH = 4, 30
#: An answer that is so late keeps at home what has a place there, of the rules of `tiers`.
OVERDUE_MS = 1_000.0


@pytest.mark.soak
@pytest.mark.parametrize(("delay_ms", "mode"), [(5, "static"), (40, "ads"), (150, "static")])
def test_nothing_is_lost_that_has_a_place(delay_ms: int, mode: str) -> None:
    """Simple requests stay; complex ones are served there, and here while the way is cut; every answer that
    came is charged once at the edge; the books of both sites close."""
    with two_sites(delay_s=delay_ms / 1e3, mode=mode, tls=True) as sites:
        try:
            answers: list[tuple[str, int, str]] = []
            over = threading.Event()

            def client(number: int) -> None:
                for i in range(EACH):
                    kind, text = (("simple", SIMPLE), ("complex", COMPLEX))[(i + number) % 2]
                    status, heads, body = sites.ask(text=text, key=KEYS["globex"])
                    by = body["choices"][0]["message"]["content"] if status == 200 else ""
                    # The edge may be full for a moment, where this machine has much else to do.
                    full = kind == "simple" and heads.get("x-steersman-spilled") == "full"
                    answers.append(("full" if full else kind, status, by))

            def cutter() -> None:
                while not over.wait(0.7):
                    sites.way.cut()
                    over.wait(0.5)
                    sites.way.mend()

            before = sites.edge.tenant("globex")["output_tokens"]
            clients = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
            cuts = threading.Thread(target=cutter)
            for each in (cuts, *clients):
                each.start()
            for each in clients:
                each.join()
            over.set()
            cuts.join()
            sites.way.mend()
            found = Counter(answers)
            assert {status for _, status, _ in found} == {200}, found
            assert found["simple", 200, "in the centre"] == 0, found
            assert found["simple", 200, "at the edge"] > CLIENTS * EACH // 4, found
            wait_for("the edge's books", sites.edge.quiet)
            wait_for("the centre's books", sites.centre.quiet)
            charged = 3 * CLIENTS * EACH
            wait_for("the charges", lambda: sites.edge.tenant("globex")["output_tokens"] == before + charged)
            sites.connected()
            assert sites.answered_by(BIG) == "in the centre"
            # Its word may still be of when it was full.
            wait_for("room there", lambda: sites.answered_by(text=COMPLEX) == "in the centre")
            wait_for("the way", lambda: sites.link["round_trip_ms"] >= 2 * delay_ms)
        except BaseException:
            sites.show_logs()
            raise


@pytest.mark.slow
@pytest.mark.parametrize("delay_ms", [5, 40, 150])
def test_the_way_stalls(delay_ms: int) -> None:
    """What was sent into a stall is answered after it, by the centre or at home; what comes is served at home
    meanwhile; with the first answer after it goes there again, and each is charged once."""
    with two_sites(delay_s=delay_ms / 1e3) as sites:
        try:
            wait_for("the centre", lambda: sites.answered_by(text=COMPLEX) == "in the centre")
            before, asked = sites.edge.tenant("globex")["output_tokens"], 0
            found: list[int] = []

            def ask() -> None:
                found.append(sites.ask(text=COMPLEX, key=KEYS["globex"])[0])

            for _ in range(2):
                waiting: list[threading.Thread] = []
                sites.way.stall()
                try:
                    # Until the edge knows, each may have gone into it.
                    while sites.link["overdue_ms"] < OVERDUE_MS:
                        waiting.append(threading.Thread(target=ask))
                        waiting[-1].start()
                        waiting[-1].join(0.1)
                    assert sites.answered_by(text=COMPLEX) == "at the edge"
                finally:
                    sites.way.flow()
                    for each in waiting:
                        each.join()
                asked += len(waiting)
                assert found == [200] * asked
                sites.connected()
                wait_for("no answer overdue", lambda: sites.link["overdue_ms"] == 0.0)
                wait_for("the centre", lambda: sites.answered_by(text=COMPLEX) == "in the centre")
            charged = before + 3 * asked
            wait_for("the charges", lambda: sites.edge.tenant("globex")["output_tokens"] == charged)
            wait_for("the edge's books", sites.edge.quiet)
            wait_for("the centre's books", sites.centre.quiet)
        except BaseException:
            sites.show_logs()
            raise
