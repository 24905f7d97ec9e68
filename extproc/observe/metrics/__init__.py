"""Prometheus' metrics: counted on the request path, read in slices, rendered in a thread."""
