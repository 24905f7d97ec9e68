from __future__ import annotations

import sys
from pathlib import Path

# tests/wire/envoy_messages.py is shared by this folder's tests (import-mode importlib adds no paths).
sys.path.insert(0, str(Path(__file__).parent))
