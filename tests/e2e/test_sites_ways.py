"""Two sites with 5, 40 and 150 ms of way between them, by TLS, while the way is cut again and again."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from gateway import KEYS, wait_for
from two_sites import BIG, COMPLEX, SIMPLE, two_sites

pytestmark = [pytest.mark.envoy, pytest.mark.soak]

CLIENTS, EACH = 4, 30


@pytest.mark.parametrize(("delay_ms", "mode"), [(5, "static"), (40, "ads"), (150, "static")])
def test_nothing_is_lost_that_has_a_place(delay_ms: int, mode: str) -> None:
    """Simple requests stay; complex ones are served there, and here while the way is cut; every answer that
    came is charged once at the edge; the books of both sites close."""
    with two_sites(delay_s=delay_ms / 1e3, mode=mode, tls=True) as sites:
        try:
            found: Counter[tuple[str, int, str]] = Counter()
            over = threading.Event()

            def client(number: int) -> None:
                for i in range(EACH):
                    kind, text = (("simple", SIMPLE), ("complex", COMPLEX))[(i + number) % 2]
                    status, _, body = sites.ask(text=text, key=KEYS["globex"])
                    by = body["choices"][0]["message"]["content"] if status == 200 else ""
                    found[kind, status, by] += 1

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
            assert {status for _, status, _ in found} == {200}, found
            assert found["simple", 200, "at the edge"] == CLIENTS * EACH // 2
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
