"""The least that an ext_proc service on grpc.aio can do: `python noop.py PORT` says CONTINUE to all it gets.

What any service of this kind and transport costs at least, beside which ours is judged. Messages are read and
written with protobuf's own classes, as everybody does.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from extproc._pb import ext_proc_pb2 as pb

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
RECORDS = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"


async def process(
    requests: AsyncIterator[pb.ProcessingRequest], _context: object
) -> AsyncIterator[pb.ProcessingResponse]:
    """One request's stream: each phase goes on as it is."""
    async for request in requests:
        response = pb.ProcessingResponse()
        phase = request.WhichOneof("request")
        assert phase is not None
        # The oneof must be set, though there is nothing in it: without it the answer is a spurious message.
        getattr(response, phase).SetInParent()
        yield response


async def swallow(records: AsyncIterator[bytes], _context: object) -> bytes:
    """Records are read and forgotten."""
    async for _ in records:
        pass
    return b""


async def nothing(_request: bytes, _context: object) -> bytes:
    """Any other call: a first-token event."""
    return b""


class Methods(grpc.GenericRpcHandler):
    """What is called, by its path."""

    def service(self, details: Any) -> Any:
        """The handler."""
        if details.method == PROCESS:
            return grpc.stream_stream_rpc_method_handler(
                process,
                request_deserializer=pb.ProcessingRequest.FromString,
                response_serializer=pb.ProcessingResponse.SerializeToString,
            )
        if details.method == RECORDS:
            return grpc.stream_unary_rpc_method_handler(swallow)
        return grpc.unary_unary_rpc_method_handler(nothing)


async def serve(port: int) -> None:
    """Listen until killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Methods(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
