"""How many examples a property test plays: few in `make test`, its full number in `make soak`.

A test names its full number, `@examples(300)`; the profile says what share of it is played.
`--hypothesis-profile full` plays all of it.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

#: What a test without a number of its own plays in full: Hypothesis' own default.
FULL = 100
FAST = 20
#: Below this a property test is an example with a long name.
EXAMPLES_MIN = 5


def register() -> None:
    """The profiles, and the fast one for who asks for none."""
    # Cores are shared, with other tests among others: how long an example takes says nothing of it. A failure
    # prints what repeats it anywhere (`@reproduce_failure`), beside the smallest example found.
    shared: dict[str, Any] = {
        "deadline": None,
        "suppress_health_check": [HealthCheck.too_slow],
        "print_blob": True,
    }
    settings.register_profile("fast", max_examples=FAST, **shared)
    settings.register_profile("full", max_examples=FULL, **shared)
    settings.load_profile("fast")


def examples(full: int = FULL, *, steps: int | None = None, **more: Any) -> settings:
    """The profile's share of `full` examples, each of at most `steps` steps if it is a machine."""
    if steps is not None:
        more["stateful_step_count"] = steps
    return settings(max_examples=max(EXAMPLES_MIN, full * settings().max_examples // FULL), **more)
