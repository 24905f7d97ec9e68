"""The endpoint-picker protocol (Gateway API Inference Extension): what all its streams share.

One stream is exchange.py's, how it is answered responder.py's, the response that passes by response.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from extproc.config.picker import PickerConfig as Settings
from extproc.core.outcome import Outcome
from extproc.wire.picker import codec
from extproc.wire.processor import Processor

log = logging.getLogger(__name__)

#: How often a request that runs is said to do so: often enough for the shortest reservation (5 s).
HEARTBEAT_NS = 1_000_000_000


class FollowedStream(Protocol):
    """A stream that stays for its response."""

    def beat(self, *, now_ns: int) -> None:
        """Say that the request still runs."""


def _nobody_joins(_model: str, _tenant: str, _addresses: tuple[str, ...]) -> None:
    """Endpoints that are in no pool stay out."""


class Picker:
    """What all streams of the protocol share.

    `settle` takes outcomes as the access log's, `first_token` a reservation's id, whether the engine
    refused, and who answers. `join(model, tenant, addresses)` hears of endpoints that a gateway named and
    no pool has.
    """

    def __init__(
        self,
        processor: Processor,
        settings: Settings,
        *,
        settle: Callable[[Outcome], object],
        first_token: Callable[[str, bool, str], object],
        join: Callable[[str, str, tuple[str, ...]], object] = _nobody_joins,
    ) -> None:
        self.processor = processor
        self.settings = settings
        self.settle = settle
        self.first_token = first_token
        self.join = join
        #: Request bodies in memory.
        self.bodies_bytes = 0
        #: Streams that stay for their responses.
        self.following: set[FollowedStream] = set()
        self._told_ns = 0

    def speaks(self, data: bytes) -> bool:
        """Whether a stream that begins with this message is of the protocol."""
        settings = self.settings
        if not settings.enabled:
            return False
        said = codec.modes(data)
        return settings.assume if said is None else said.request == codec.FULL_DUPLEX

    def passed_on(self) -> None:
        """A response that need not pass through here, and does."""
        self._count(
            "picker.passed_on",
            "picker.settle is 'access_log', but a gateway sends response bodies: its streams stay open to "
            "pass them on; set its response_body_mode to NONE",
        )

    def unseen(self) -> None:
        """A response whose end a gateway does not let us see."""
        self._count(
            "picker.unseen",
            "picker.settle is 'stream', but a gateway sends no response bodies: its requests' ends stay "
            "unseen and their reservations expire; let it send them, or our access log",
        )

    def step(self, *, now_ns: int) -> None:
        """Time has passed: what still runs is said to, so that its reservation lives on."""
        if now_ns - self._told_ns < HEARTBEAT_NS:
            return
        self._told_ns = now_ns
        for exchange in tuple(self.following):
            exchange.beat(now_ns=now_ns)

    def _count(self, name: str, warning: str) -> None:
        """What a gateway's configuration is to blame for; said once."""
        counts = self.processor.scheduler.counts
        if not counts[name]:
            log.warning(warning)
        counts[name] += 1
