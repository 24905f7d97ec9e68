"""catalogue.py: names apart from the code that they name, and equal to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from extproc.core.catalogue import STRATEGY_NAMES
from extproc.core.strategies import OWN, PEERS

MINIMAL = Path(__file__).parents[2] / "envoy" / "examples" / "minimal.yaml"


def test_the_names_are_the_registrys() -> None:
    """Each strategy, in its order."""
    assert tuple(each.name for each in OWN + PEERS) == STRATEGY_NAMES


def test_a_check_imports_nothing_that_decides() -> None:
    """Names alone: `steersman check` pays for no strategy, family or experiment."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom extproc.config.load import load\n"
        "load(Path(sys.argv[1]))\n"
        "parts = ('strategies', 'experiment', 'families', 'fleet', 'request', 'decide')\n"
        "print(*(part for part in parts if f'extproc.core.{part}' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(MINIMAL)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
