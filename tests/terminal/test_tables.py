"""table.py: what a person sees, at two widths, with nothing, with much, and with something wrong."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from extproc.terminal import tables


def line(**values: Any) -> dict[str, Any]:
    figures = {
        **dict.fromkeys(("decided", "ok", "refused", "failed", "client_gone", "rejected", "expired"), 0),
        "prompt_tokens": 0,
        "output_tokens": 0,
        "tokens_per_s": 0.0,
        "ttft_p50_ms": None,
        "ttft_p99_ms": None,
    }
    return {**figures, **values}


def status(*, tenants: int = 2, endpoints: int = 2, decisions: int = 3) -> dict[str, Any]:
    return {
        "uptime_s": 75.2,
        "in_flight": 3,
        "tenants": {
            f"tenant-{n}": line(decided=12, ok=10, failed=n, ttft_p50_ms=1240.4) for n in range(tenants)
        },
        "endpoints": [
            {
                **line(ok=5),
                "address": f"127.0.0.1:{8000 + n}",
                "pool": "chat",
                "zone": "",
                "ready": n != 1,
                "suspect": n == 0,
                "announced": True,
                "draining": False,
                "health": 1.0 if n == 0 else 0.4,
                "causes": {},
                "in_flight": n,
                "in_flight_tokens": 100 * n,
                "max_concurrent": 128,
            }
            for n in range(endpoints)
        ],
        "decisions": [
            {
                "id": str(n),
                "tenant": "tenant-0",
                "pool": "chat",
                "endpoint": "127.0.0.1:8000",
                "input_tokens": 1000 + n,
                "output_tokens": 7,
                "reason": "least_work: 127.0.0.1:8000=12 [not markup]",
            }
            for n in range(decisions)
        ],
    }


def drawn(what: dict[str, Any], *, width: int = 120, height: int = 40, **more: Any) -> str:
    console = Console(width=width, height=height, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(tables.status_view(what, width=width, height=height, **more))
    return capture.get()


def test_the_tables_say_what_the_service_says() -> None:
    """Tenants, endpoints and decisions with reasons, markup in names shown as it is."""
    text = drawn(status(), labels={"127.0.0.1:8000": "1 cheap-a100"})
    for part in ("tenant-1", "1,240", "127.0.0.1:8000", "1 cheap-a100", "suspect", "not ready", "1,002"):
        assert part in text
    assert "least_work: 127.0.0.1:8000=12 [not markup]" in text


def test_what_waits_and_whose_class_it_is_is_shown() -> None:
    """Held requests always, the class where there is room."""
    use = {"tenants": {"tenant-0": {"held": 41, "class": "premium"}}}
    assert "premium" in drawn({**status(), "use": use}, width=120)
    narrow = drawn({**status(), "use": use}, width=80)
    assert "held" in narrow
    assert "41" in narrow


def test_what_clients_saw_goes_before_the_services_own_count() -> None:
    """A service that was away does not know of the requests that failed meanwhile."""
    seen = {name: {"failed": 77, "ttft_p50_ms": 55.5, "ttft_p99_ms": 66.6} for name in status()["tenants"]}
    text = drawn(status(), seen=seen)
    assert text.count("77") == 2
    assert "1,240" not in text


@pytest.mark.parametrize("width", [50, 60, 80, 104, 120, 128, 160])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """A narrow terminal gets fewer columns, not broken lines."""
    text = drawn(status(), width=width, labels={"127.0.0.1:8000": "1 cheap-a100"})
    assert max(len(row) for row in text.splitlines()) <= width
    assert ("tokens/s" in text) is (width >= tables.NARROW)


def test_the_demo_fits_a_terminal_of_80_by_24() -> None:
    """Three tenants, four replicas, all notes and events: decisions give way."""
    notes = ["SIMULATED", "workload", "faults", "page", "hint", "free-trial: 3 refused (429) by its quota"]
    events = ["fault laid on", "watch", "failed 1×"]
    height = 23  # one line less than there are, as live.py draws
    body = tables.status_view(status(tenants=3, endpoints=4), width=80, height=height - len(notes))
    console = Console(width=80, height=24, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(tables.screen(body, title="steersman demo", right="0:42", notes=notes, events=events))
    lines = capture.get().splitlines()
    assert len(lines) <= height
    for part in (*notes, *events, "tenant-2", "127.0.0.1:8003"):
        assert any(part in line for line in lines), part


def test_much_is_summed_up_within_the_height() -> None:
    """A thousand endpoints and tenants fit a terminal."""
    text = drawn(status(tenants=50, endpoints=1000, decisions=32), height=40)
    assert "and 988 more" in text
    assert "and 42 more" in text
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "suspect"),
        ({"suspect": False}, ""),
        ({"suspect": False, "ready": False}, "not ready"),
        ({"draining": True}, "draining, suspect"),
        ({"announced": False}, "not yet Envoy's, suspect"),
        ({"suspect": False, "kv_events": None}, ""),
        ({"suspect": False, "kv_events": {"complete": True}}, ""),
        ({"suspect": False, "kv_events": {"complete": False}}, "KV events lost"),
        (
            {
                "causes": {
                    "gpu xid 79": {"kind": "hard", "factor": 0.0, "detail": "fell off the bus on GPU-1"},
                    "state": {"kind": "hard", "factor": 0.0, "detail": "hung"},
                    "errors": {"kind": "suspicion", "factor": 0.9, "detail": ""},
                }
            },
            "xid 79, hung, errors, suspect",
        ),
    ],
)
def test_an_endpoints_state_is_what_a_person_asks_for(changed: dict[str, Any], said: str) -> None:
    """Nothing where all is well; GPU faults by their names, the rest as it was seen."""
    assert tables.state({**status()["endpoints"][0], **changed}).plain == said


def test_nothing_yet_is_no_error() -> None:
    """A service that has just started."""
    assert "Tenants" in drawn(status(tenants=0, endpoints=0, decisions=0))


def test_the_line_for_logs_has_it_all() -> None:
    """Where there is no terminal."""
    assert tables.summary_line(status(tenants=1)) == (
        "1:15 in flight 3 · tenant-0: ok 10, failed 0, rejected 0, TTFT p50 1,240 p99 – ms, 0 tokens/s"
    )


@pytest.mark.parametrize(("value", "full"), [(0, 0), (50, 4), (100, 8), (900, 8)])
def test_a_bar_is_never_wider_than_its_cells(value: float, full: int) -> None:
    """In eighths of a cell, of a fixed width."""
    assert len(tables.bar(value, 100)) == tables.BAR_CELLS
    assert tables.bar(value, 100).count("█") == full
    assert tables.bar(value, 0).strip() == ""


def test_durations_read_like_a_clock() -> None:
    """Minutes, and hours once there are some."""
    assert [tables.clock(s) for s in (0, 62.9, 3723)] == ["0:00", "1:02", "1:02:03"]


@pytest.mark.parametrize("width", [60, 80])
def test_no_head_is_cut(width: int) -> None:
    """A narrow terminal gets fewer columns, and those whole."""
    rows = drawn(status(), width=width).splitlines()
    heads = [row for row in rows if row.startswith(("Tenants", "Endpoints"))]
    assert len(heads) == 2
    assert not any("…" in row for row in heads)


def test_the_title_keeps_a_distance() -> None:
    """However little room there is between it and what stands at the right."""
    console = Console(width=60, height=20, no_color=True, force_terminal=False)
    screen = tables.screen("", title="service at 127.0.0.1:50051 and more", right="up 1:08   in flight 0")
    with console.capture() as seen:
        console.print(screen)
    assert "  up 1:08" in seen.get()
