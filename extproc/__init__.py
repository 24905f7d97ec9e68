"""Steersman: an Envoy external-processing service that balances multi-tenant LLM inference."""

__version__ = "0.1.0"
