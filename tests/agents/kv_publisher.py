"""A publisher of KV events as vLLM and SGLang have it: PUB of three frames, and a ROUTER that replays.

Both forms of events: arrays (SGLang, vLLM until 2026) and maps (vLLM since). In a thread, as there.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import msgspec

ARRAYS, MAPS = "arrays", "maps"
_FIELDS = {
    "BlockStored": (
        *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"),
        *("lora_name", "extra_keys", "group_idx"),
        *("kv_cache_spec_kind", "kv_cache_spec_sliding_window"),
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}


def stored(
    hashes: list[Any], ids: list[Any], *, parent: Any = None, size: int = 16, **more: Any
) -> dict[str, Any]:
    """BlockStored as a map."""
    told = {"block_hashes": hashes, "parent_block_hash": parent, "token_ids": ids, "block_size": size}
    return {"type": "BlockStored", **told, "lora_id": None, "medium": "GPU", **more}


def removed(*hashes: Any) -> dict[str, Any]:
    """BlockRemoved as a map."""
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU"}


CLEARED = {"type": "AllBlocksCleared"}


def batch(*events: dict[str, Any], at_s: float = 1.0, form: str = MAPS) -> bytes:
    """One batch's bytes; unknown fields stand at an array's end."""
    told: list[Any] = list(events)
    if form == ARRAYS:
        told = [
            [each["type"], *(each.get(name) for name in _FIELDS.get(each["type"], ())), "new"]
            for each in events
        ]
    return msgspec.msgpack.encode([at_s, told, 0])


class KvPublisher:
    """`send` publishes; `lose` takes a number without publishing; `kept` bounds what is replayed.

    `topics`: replayed batches have their topic before the number, as vLLM 0.32 has it.
    """

    def __init__(self, *, form: str, kept: int = 100, first: int = 0, topics: bool = False) -> None:
        import zmq

        self._topic: tuple[bytes, ...] = (b"kv",) if topics else ()
        self._no_topic: tuple[bytes, ...] = (b"",) if topics else ()
        self._zmq, self.form, self.next = zmq, form, first
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=kept)
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.XPUB)
        self.port = self._pub.bind_to_random_port("tcp://127.0.0.1")
        self._router = self._context.socket(zmq.ROUTER)
        self.replay_port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._replay, daemon=True)
        self._thread.start()

    def subscribed(self, timeout_s: float = 20.0) -> None:
        """Until somebody listens: what was published before is not heard."""
        assert self._pub.poll(int(timeout_s * 1000)), "nobody subscribed"
        self._pub.recv()

    def send(self, *events: dict[str, Any], at_s: float | None = None) -> None:
        number, payload = self.lose(*events, at_s=at_s)
        self._pub.send_multipart((b"kv", number.to_bytes(8, "big"), payload))

    def lose(self, *events: dict[str, Any], at_s: float | None = None) -> tuple[int, bytes]:
        number, self.next = self.next, self.next + 1
        payload = batch(*events, at_s=float(number + 1) if at_s is None else at_s, form=self.form)
        self._buffer.append((number, payload))
        return number, payload

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(20)
        self._pub.close(linger=0)
        self._context.term()

    def _replay(self) -> None:
        while not self._stopped.is_set():
            if not self._router.poll(20):
                continue
            client, _, first = self._router.recv_multipart()
            for number, payload in list(self._buffer):
                if number >= int.from_bytes(first, "big"):
                    number_bytes = number.to_bytes(8, "big")
                    self._router.send_multipart((client, b"", *self._topic, number_bytes, payload))
            end = (-1).to_bytes(8, "big", signed=True)
            self._router.send_multipart((client, b"", *self._no_topic, end, b""))
        self._router.close(linger=0)
