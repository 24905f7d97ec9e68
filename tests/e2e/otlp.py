"""The example's receiver, for tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "traces"))

from receiver import Receiver, Span, attributes, tree

__all__ = ["Receiver", "Span", "attributes", "tree"]
