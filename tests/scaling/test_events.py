"""Known events: when their replicas are there."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from extproc.config.scaling import ScheduledScaling
from extproc.scaling.events import ScheduledFloors


def at(text: str) -> float:
    """Unix seconds of a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def line(**more: object) -> ScheduledScaling:
    return ScheduledScaling.model_validate(
        {"pool": "llama", "cron": "0 8 * * mon-fri", "duration_s": 7_200, "replicas": 5, **more}
    )


def test_an_event_counts_from_a_load_time_before_it_until_it_ends() -> None:
    """Replicas are started before it begins, and are its own for as long as it lasts, in its time zone."""
    floors = ScheduledFloors([line(timezone="Europe/Berlin")])

    def floor(text: str) -> int:
        return floors.floor("llama", at_s=at(text), lead_s=300.0)

    # 8:00 in Berlin is 7:00 in winter and 6:00 in summer.
    assert floor("2026-11-30T06:54:00") == 0
    assert floor("2026-11-30T06:56:00") == 5
    assert floor("2026-11-30T08:59:59") == 5
    assert floor("2026-11-30T09:00:00") == 0
    assert floor("2026-12-05T07:30:00") == 0  # a Saturday
    assert floor("2027-07-05T06:30:00") == 5
    assert floors.floor("other", at_s=at("2027-07-05T06:30:00"), lead_s=300.0) == 0


def test_a_service_that_begins_amid_an_event_and_one_whose_clock_is_set_back_know_it() -> None:
    """The window is found from any moment inside, and again after the clock went back."""
    floors = ScheduledFloors([line(), line(cron="0 9 * * *", replicas=9, duration_s=600)])
    assert floors.floor("llama", at_s=at("2026-11-30T09:05:00"), lead_s=0.0) == 9
    assert floors.floor("llama", at_s=at("2026-11-30T09:30:00"), lead_s=0.0) == 5
    assert floors.floor("llama", at_s=at("2026-11-30T07:30:00"), lead_s=0.0) == 0
    assert floors.floor("llama", at_s=at("2026-11-30T08:30:00"), lead_s=0.0) == 5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"cron": "61 8 * * *"}, "no cron line"), ({"timezone": "Europe/Bonn"}, "no time zone")],
)
def test_a_line_that_cannot_be_is_refused_with_the_mend(wrong: dict[str, str], said: str) -> None:
    """The message names what is wrong and shows what it looks like."""
    with pytest.raises(ValidationError, match=said):
        line(**wrong)
