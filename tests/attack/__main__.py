"""`make attack`: every attack at length through the real Envoy; a table, and exit code 1 where one succeeds.

`python -m tests.attack [NAME …]` runs those whose names begin so; `--quick` as long as `make test` does.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))


def main() -> int:
    """Run, tell, and say by the exit code whether everything held."""
    # They register themselves; late, since the path above is for them.
    from tests.attack import attacks as _attacks  # noqa: F401
    from tests.attack import disk as _disk  # noqa: F401
    from tests.attack import forgeries as _forgeries  # noqa: F401
    from tests.attack.report import ATTACKS, Report, table
    from tests.attack.stand import standing

    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("names", nargs="*", help="names of attacks, or their beginnings")
    parser.add_argument("--quick", action="store_true", help="each as long as make test has time for")
    given = parser.parse_args()
    wanted = [
        each for each in ATTACKS if not given.names or any(each.name.startswith(name) for name in given.names)
    ]
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
    print()
    print(table(rows))
    return int(not rows or any(report.broken for _, report in rows))


if __name__ == "__main__":
    sys.exit(main())
