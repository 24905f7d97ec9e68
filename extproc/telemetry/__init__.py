"""Receives what node agents push: validates it, bounds it, and hands it to the fleet.

`ingest` is sans-I/O (bytes of a report in, bytes of an acknowledgement out); `server` alone knows grpc.
"""
