"""How fast large bodies are taken: so many bytes a second of each sender's.

All reading is done on one loop, and a large body costs others milliseconds of it. Before a large one is read
it is asked on the headers whose it is, and there it can wait: Envoy reads no further meanwhile. Owns the
schedule alone (one time a sender, a leaky bucket as a meter). Pure.
"""

from __future__ import annotations

from collections import OrderedDict

S_NS = 1_000_000_000
#: So much of its rate a sender may have at once.
BURST_NS = S_NS
#: Senders that are remembered; one beyond them is taken for new.
SENDERS_MAX = 10_000


class BodyRate:
    """`bytes_per_second` of each sender's large bodies, and a second's worth of them at once."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        #: When what each has sent will have been due, the last to send at the end.
        self._due_ns: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._due_ns)

    def take(self, sender: str, body_bytes: int, *, most_ns: int, now_ns: int) -> int:
        """How long a body is to wait before it is read; above `most_ns` it is refused and counts nothing."""
        due_ns = max(self._due_ns.get(sender, 0), now_ns)
        # One larger than the burst waits no longer for that: what comes after it does.
        wait_ns = max(0, due_ns - now_ns - BURST_NS)
        if wait_ns <= most_ns:
            self._due_ns[sender] = due_ns + body_bytes * S_NS // self.bytes_per_second
            self._due_ns.move_to_end(sender)
            while len(self._due_ns) > SENDERS_MAX:
                self._due_ns.popitem(last=False)
        return wait_ns
