"""The least that an ext_proc service on grpc.aio can do: `python noop.py PORT` says CONTINUE to all it gets.

What any service of this kind and transport costs at least, beside which ours is judged. Messages are read and
written with protobuf's own classes, as everybody does.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import grpc
import uvloop

from extproc._pb import ext_proc_pb2 as pb

SERVICE, METHOD = "envoy.service.ext_proc.v3.ExternalProcessor", "Process"


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


async def serve(port: int) -> None:
    """Listen until killed."""
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        process,
        request_deserializer=pb.ProcessingRequest.FromString,
        response_serializer=pb.ProcessingResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
