"""Envoy's protocols: ext_proc, access log, health.

`codec` and `accesslog` turn bytes into core values and back; `processor` is a sans-I/O state machine
of bytes in, bytes out; `server` alone knows grpc.
"""
