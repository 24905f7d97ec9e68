"""Traces and GenAI metrics: what a request leaves behind on its way, and how it becomes OTLP.

On the request path: request_trace.py (what is noted), context.py (whose it is), propagation.py (what rides
with the request). In threads of their own: spans.py (spans out of notes, by semconv.py's names), figures.py
(metrics), pipeline.py (the queues), otlp.py (the SDK; the only module that imports OpenTelemetry).
"""
