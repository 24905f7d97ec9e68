"""`make attack`: every attack at length through the real Envoy; a table, and exit code 1 where one succeeds.

`python -m tests.attack [NAME …]` runs those whose names begin so; `--quick` as long as `make test` does.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.attack.report import Report

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "e2e"))


def main() -> int:
    """Run, tell, and say by the exit code whether everything held."""
    # They register themselves; late, since the path above is for them.
    from tests.attack import admin_port as _admin_port  # noqa: F401
    from tests.attack import attacks as _attacks  # noqa: F401
    from tests.attack import cached as _cached  # noqa: F401
    from tests.attack import disk as _disk  # noqa: F401
    from tests.attack import forgeries as _forgeries  # noqa: F401
    from tests.attack import redis_books as _redis_books  # noqa: F401
    from tests.attack.report import ATTACKS, Report, table
    from tests.attack.stand import standing

    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("names", nargs="*", help="names of attacks, or their beginnings")
    parser.add_argument("--quick", action="store_true", help="each as long as make test has time for")
    given = parser.parse_args()
    wanted = [
        each for each in ATTACKS if not given.names or any(each.name.startswith(name) for name in given.names)
    ]
    # Attacks of single parts are tests of their own beside the quick part of these.
    others = sorted(set(HERE.glob("test_*.py")) - {HERE / "test_attacks.py"})
    rows: list[tuple[str, Report]] = []
    with standing() as stand:
        for each in wanted:
            began_s = time.monotonic()
            print(f"{each.name}: {each.promise}", flush=True)
            try:
                report = each.run(stand, full=not given.quick)
            except Exception as error:  # noqa: BLE001 (one that cannot go on must not hide the others)
                report = Report(broken=[f"it could not be carried out: {error!r}"])
            report.notes.append(f"{time.monotonic() - began_s:.0f} s")
            rows.append((each.name, report))
    for file in others if not given.names else ():
        print(f"{file.stem}: see the file", flush=True)
        rows.append((file.stem, tests(file)))
    print()
    print(table(rows))
    return int(not rows or any(report.broken for _, report in rows))


def tests(file: Path) -> Report:
    """What pytest says of a file of attacks."""
    from tests.attack.report import Report

    command = [sys.executable, "-m", "pytest", "-q", "--no-header", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parents[1])
    report = Report()
    for count, outcome in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout[-300:]):
        report.tried += int(count)
        report.answered[outcome] += int(count)
    report.holds(done.returncode == 0, done.stdout[-2_000:])
    return report


if __name__ == "__main__":
    sys.exit(main())
