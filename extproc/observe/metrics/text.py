"""Prometheus' plain text by hand: a histogram's samples, and the lines of a metric whose name is another's.

Owns what a sample is. The client library, which this does without, gives every counter a `_total`; the
engines that the simulator stands for do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from extproc.core.series import Counted

PLAIN = "text/plain; version=0.0.4; charset=utf-8"

#: What is appended to the metric's name, label values in the labels' order (and a bucket's bound), the value.
MetricSample = tuple[str, tuple[str, ...], float]


def histogram(key: tuple[str, ...], counted: Counted, bounds: Sequence[float]) -> Iterator[MetricSample]:
    """The samples of a histogram of fixed buckets."""
    counts, total = counted
    below = list(accumulate(counts))
    for bound, count in zip([*map(repr, bounds), "+Inf"], below, strict=True):
        yield "_bucket", (*key, bound), count
    yield "_count", key, below[-1]
    yield "_sum", key, total


def lines(name: str, kind: str, labels: Sequence[str], samples: Iterable[MetricSample]) -> Iterator[str]:
    """A metric's lines under the name that it has; none where it has no sample."""
    head = f"# TYPE {name} {kind}\n"
    for ending, values, value in samples:
        named = zip((*labels, "le") if ending == "_bucket" else labels, values, strict=True)
        pairs = ",".join(f'{label}="{escaped(each)}"' for label, each in named)
        yield f"{head}{name}{ending}{{{pairs}}} {value}\n" if pairs else f"{head}{name}{ending} {value}\n"
        head = ""


def escaped(value: str) -> str:
    """A label's value as it stands between quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
