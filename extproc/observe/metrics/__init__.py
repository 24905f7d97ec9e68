"""Prometheus' metrics: counted on the request path, read in slices, rendered in a thread."""

from extproc.observe.metrics.counting import Counting
from extproc.observe.metrics.snapshot import MetricsSnapshot, take
from extproc.observe.metrics.table import PREFIX, TABLE, Spec

__all__ = ["PREFIX", "TABLE", "Counting", "MetricsSnapshot", "Spec", "take"]
