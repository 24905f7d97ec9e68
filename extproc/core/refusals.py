"""What refused work may cost: a budget of bytes for each tenant.

A body that is refused was carried and looked at all the same, and no quota charges for it. Who sends many is
refused on the headers, before the body comes. Owns the count alone (one number a tenant). Pure.
"""

from __future__ import annotations

from collections import OrderedDict

MINUTE_NS = 60 * 1_000_000_000
#: No refusal costs less than this, however small its body.
REFUSAL_BYTES_MIN = 1024
#: Tenants (or addresses, where nobody is asked who they are) that are remembered.
SENDERS_MAX = 10_000


class RefusalBudget:
    """`bytes_per_minute` of refused bodies for each sender, and as many at once.

    At most SENDERS_MAX are remembered; above it the one that was refused longest ago is forgotten.
    """

    def __init__(self, bytes_per_minute: int) -> None:
        self.bytes_per_minute = bytes_per_minute
        #: When each sender's budget will be whole again, the last to be refused at the end.
        self._whole_ns: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._whole_ns)

    def spent_s(self, sender: str, *, now_ns: int) -> int:
        """Seconds (rounded up) until a sender is read again; 0 when it is now."""
        left_ns = self._whole_ns.get(sender, 0) - MINUTE_NS - now_ns
        return -(-left_ns // 1_000_000_000) if left_ns > 0 else 0

    def charge(self, sender: str, body_bytes: int, *, now_ns: int) -> None:
        """A body of a sender was refused."""
        cost_ns = max(body_bytes, REFUSAL_BYTES_MIN) * MINUTE_NS // self.bytes_per_minute
        self._whole_ns[sender] = max(self._whole_ns.get(sender, 0), now_ns) + cost_ns
        self._whole_ns.move_to_end(sender)
        while len(self._whole_ns) > SENDERS_MAX:
            self._whole_ns.popitem(last=False)
