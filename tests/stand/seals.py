"""The seal of tests' tickets: one known key."""

from __future__ import annotations

from extproc.wire.seal import Seal

SEAL = Seal([b"k" * 32])
