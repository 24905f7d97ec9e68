"""In CI a test that skips for want of a part fails: what is not looked at there is looked at nowhere.

Every skip is one, but for what EXCUSED names with why. A new skip is thought of once, here, and not at each
place that skips.
"""

from __future__ import annotations

import os
import re
from typing import Any

#: What may be missing where CI runs: a part of the reason, and why it may.
EXCUSED = {
    r"^no GPU here|^the driver has no GPU|^this card tells of no XID": "cards are lent, and not to CI",
    r"^no helm\b": "a build by Go, of minutes; what it rendered is kept, and tests/deploy checks that",
    r"^no egctl\b": "a build by Go, of minutes; what it made is kept, and tests/e2e runs that",
    r"^no istiod\b": "a build by Go, of minutes; what it made is kept, and tests/e2e runs that",
    r"^no vllm\b": "gigabytes, and a start of minutes; its forms are kept in tests/agents and tests/e2e",
    r"^the trace \S+ is not in": "other people's, and no part of this repository; `make sim` plays them",
    r"^no file system of our own\b": "a sandbox may forbid name spaces, and nothing can be installed for it",
    r"^CPython has mended it": "there is nothing left to test",
    r"found in /proc$": "not Linux",
}


def missed(report: Any) -> str | None:
    """Why this report of a skipped test is a failure here; None where it is none."""
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if any(re.search(each, reason) for each in EXCUSED):
        return None
    return f"CI has to have it: {reason}"
