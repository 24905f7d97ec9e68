"""Whole answers that Envoy posts for the cache.

Owns the call's reading and its counts. The id in the call comes from the decision's own metadata, sealed
there, and only an answer that this service has asked for is taken: nobody else can put one in.
"""

from __future__ import annotations

from extproc.core.contract import RESERVATION_HEADER
from extproc.wire.calls import RpcCall
from extproc.wire.processor import Processor
from extproc.wire.seal import EVENT


class CacheFills:
    """The handler of the unary method whose message is an answer."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def receive(self, data: bytes, call: RpcCall) -> bytes:
        """Take one answer; answers empty, whatever becomes of it."""
        processor = self._processor
        cache, counts = processor.cache, processor.scheduler.counts
        counts["cache.fills"] += 1
        sealed = next((value for name, value in call.metadata() if name == RESERVATION_HEADER), "")
        reservation_id = processor.seal.opened(sealed, EVENT)
        if reservation_id is None:
            counts["cache.forged"] += 1
            return b""
        if cache is None or len(data) > cache.answer_bytes_max:
            counts["cache.unwanted"] += 1
            return b""
        try:
            if not cache.fill(reservation_id, data):
                counts["cache.unknown"] += 1
        except Exception as error:  # noqa: BLE001 (an answer that is not kept has been given all the same)
            processor.failed(error, "filling the cache")
        return b""
