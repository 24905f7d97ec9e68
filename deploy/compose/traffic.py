"""Two tenants' traffic for the compose demonstration (profile `sim`): something to see on the dashboards.

    traffic.py http://envoy:8080 [SECONDS]

Owns the arrivals and the prompts, from a seed; reads streams to their end and keeps nothing. Standard
library alone. Refusals are part of the picture, so that nothing here ends it but the time.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request

#: Tenant's key, requests a second, median words of a prompt.
TENANTS = (("sk-steer-compose-acme", 3.0, 120), ("sk-steer-compose-globex", 2.0, 400))
SHARED = "You are the assistant of a shop for sails and ropes. " * 20
IN_FLIGHT_MAX = 64
TIMEOUT_S = 60.0


def _one(base: str, key: str, words: int, *, stream: bool, places: threading.Semaphore) -> None:
    body = {
        "model": "sim-8b",
        "stream": stream,
        "max_tokens": 200,
        "messages": [
            {"role": "system", "content": SHARED},
            {"role": "user", "content": "knot " * words},
        ],
    }
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(  # noqa: S310 (the gateway's own address)
        base.rstrip("/") + "/v1/chat/completions", data=json.dumps(body).encode(), headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            while answer.read(16 * 1024):
                pass
    except urllib.error.HTTPError as error:
        error.close()
    except OSError as error:
        print(error, file=sys.stderr)
    finally:
        places.release()


def _tenant(base: str, key: str, rate: float, words: int, until: float) -> None:
    chance = random.Random(key)
    places = threading.Semaphore(IN_FLIGHT_MAX)
    while (now := time.monotonic()) < until:
        time.sleep(min(chance.expovariate(rate), until - now))
        if places.acquire(blocking=False):
            length = max(1, int(chance.lognormvariate(0.0, 0.8) * words))
            ask = {"stream": chance.random() < 0.8, "places": places}
            threading.Thread(target=_one, args=(base, key, length), kwargs=ask, daemon=True).start()


def main(base: str, seconds: float) -> None:
    """Both tenants, for so long."""
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=_tenant, args=(base, *each, until)) for each in TENANTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else float("inf"))
