"""Processes and their readiness: Envoy, the service and what a demo adds, kept running, stopped whole.

Knows that a configuration exists and what it says of addresses; knows nothing of decisions or traffic.
"""
