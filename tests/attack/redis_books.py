"""Attacks on the Redis that services share: emptied, no scripts, wrong values, another in its place."""

from __future__ import annotations

import contextlib
import random
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gateway import Gateway, wait_for
from redis_harness import Redis
from shaped_engine import ShapedEngine

from extproc.core.tenant import hash_key
from tests.attack.report import Report, attack
from tests.attack.stand import CHAT, SPENT, SPENT_REQUESTS, VICTIM, Beside, Stand, say

#: What somebody who is no Redis might say.
NONSENSE = (
    *(
        b"+OK\r\n",
        b"$5\r\nhello\r\n",
        b"*9\r\n" + b":1\r\n" * 9,
        b"-ERR nonsense\r\n",
        b"$-5\r\n",
        b"*-7\r\n",
    ),
    *(b":99999999999999999999\r\n", b"\xff\xfe\x00", b"$1000000000\r\nx", b"HTTP/1.1 400 Bad\r\n\r\n"),
)
SERVICES = 2
#: Each service may decide alone by its share while Redis is not there, and once more after it is back.
BOUND = 2 * SERVICES * SPENT_REQUESTS


@contextlib.contextmanager
def somebody_else(port: int) -> Iterator[None]:
    """In Redis's place listens one who answers nonsense."""
    stop, rng = threading.Event(), random.Random(7)

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while not stop.is_set() and connection.recv(65_536):
                connection.sendall(rng.choice(NONSENSE) * 3)

    def accept() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection = listener.accept()[0]
                connection.settimeout(1)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(0.2)
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def keys_of(redis: Redis) -> list[bytes]:
    return [key for key in redis.command("KEYS", "*") if b"quota" in key]


def emptied(redis: Redis) -> None:
    for _ in range(3):
        redis.command("FLUSHALL")
        time.sleep(0.5)


def without_scripts(redis: Redis) -> None:
    for _ in range(3):
        redis.command("SCRIPT", "FLUSH")
        time.sleep(0.5)


def wrong_values(redis: Redis) -> None:
    """Other types under our keys, then hostile figures in the right ones."""
    keys = keys_of(redis)
    for key in keys:
        redis.command("DEL", key)
        redis.command("SET", key, "nonsense")
    time.sleep(1)
    for key in keys:
        redis.command("DEL", key)
        redis.command("HSET", key, "epoch", "1", "d:tenant/requests_per_minute", "9e99 nan", "c:tenant", "-5")
    time.sleep(1)
    redis.command("FLUSHALL")


def in_its_place(redis: Redis) -> None:
    redis.kill()
    with somebody_else(redis.port):
        time.sleep(3)
    redis.start()


@attack("whatever becomes of Redis, who pays is served and a quota holds within its bound", quick=False)
def redis_books(_: Stand, full: bool) -> Report:
    report = Report()
    with tempfile.TemporaryDirectory() as folder, Redis(Path(folder)) as redis, ShapedEngine() as engine:
        pools = {"chat": {"models": ["m"], "engine": "vllm", "addresses": [engine.addresses[0]]}}
        tenants = [
            {
                "name": VICTIM,
                "keys": [{"sha256": hash_key(VICTIM)}],
                "quota": {"requests_per_minute": 60_000},
            },
            {
                "name": SPENT,
                "keys": [{"sha256": hash_key(SPENT)}],
                "quota": {"requests_per_minute": SPENT_REQUESTS},
            },
        ]
        with Gateway(pools, services=SERVICES, tenants=tenants, sharing={"redis": redis.url}) as gateway:
            stand = Stand(gateway, engine, engine, "")

            def shared() -> bool:
                return all(
                    (quotas := gateway.status(i)["quotas"])["connected"] and quotas["reconciled"]
                    for i in range(SERVICES)
                )

            wait_for("Redis", shared)
            began_s = time.monotonic()
            for each in (emptied, without_scripts, wrong_values, in_its_place):
                victim: Counter[int | str] = Counter()
                spent: Counter[int | str] = Counter()

                def both(victim: Counter[int | str] = victim, spent: Counter[int | str] = spent) -> None:
                    victim[stand.ask(CHAT, say(), VICTIM)[0]] += 1
                    spent[stand.ask(CHAT, say(), SPENT)[0]] += 1
                    time.sleep(0.05)

                with Beside(both, threads=1):
                    each(redis)
                report.tried += 1
                report.answered += spent
                report.served(victim)
                wait_for("shared books", shared, timeout_s=30)
                report.holds(set(spent) <= {200, 429}, f"{each.__name__}: {dict(spent)}")
            minutes = (time.monotonic() - began_s) / 60
            # An emptied Redis has forgotten what was used: each time anew.
            forgotten = 3 + 1 + 1 + 1
            most = SPENT_REQUESTS * (forgotten + minutes) + BOUND
            report.notes.append(f"{report.answered[200]} served of a quota that allows at most {most:.0f}")
            report.holds(report.answered[200] <= most, f"{report.answered[200]} passed, above {most:.0f}")
            for i in range(SERVICES):
                counts = gateway.status(i)["counts"]
                faults = {name: n for name, n in counts.items() if name.startswith("exception.") and n}
                report.holds(not faults, f"service {i} had faults of its own: {faults}")
    return report
