from __future__ import annotations

import sys
from pathlib import Path

# What tests/wire shares, and this folder's own peer (import-mode importlib adds no paths).
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
