"""gRPC's calls over libnghttp2 (package ngh2), on the event loop's own protocols.

connection.py is one connection, stream.py one call, framing.py what both write and read, transport.py what
listens, bridge.py handlers that were written for grpc.aio. Importing this needs ngh2.
"""

from extproc.wire.http2.transport import Http2Transport

__all__ = ["Http2Transport"]
