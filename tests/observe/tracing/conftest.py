"""Journeys of a small fleet, made the way the wire makes them."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.append(str(HERE.parent))
sys.path.append(str(HERE.parents[3] / "examples" / "traces"))
