from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_traffic import record

from extproc.lab.replay.log import FleetLine, Log, LogError, RecordRow, read
from extproc.lab.replay.rebuild import scene
from extproc.observe.record import MEMBER_FIELDS

MEMBER = dict(
    zip(MEMBER_FIELDS, ("10.0.0.1:80", "", 64, "NVIDIA L4", 1, 90_000, 1.0, False, True, 1.0), strict=True)
)
CLASS = {
    "name": "standard",
    "hold_ns": 1,
    "ttft_ns": 2,
    "tpot_ns": 3,
    "long_prompt_tokens": 4,
    "long_ttft_ns": 5,
    "long_hold_ns": 6,
}


def fleet(at_ms: float, *members: dict[str, Any], **facts: Any) -> FleetLine:
    pool = {
        "name": "chat",
        "models": ["m"],
        "strategy": "steer",
        "prefill_budget_tokens": 4096,
        "members": [list((MEMBER | member).values()) for member in members or ({},)],
        "timings": [["NVIDIA L4", 1, 9, 20.0, 0.1, 1e-4, 5.0, 0.2, 1e-6]],
    }
    return FleetLine(at_ms, {"pools": [pool | facts], "classes": [CLASS], "weights": {"acme": 2.0}})


def row(number: int, **facts: Any) -> RecordRow:
    given = {"at_ms": 1_000.0 + number, "id": str(number), "pool": "chat", "outcome": "ok", "model": "m"}
    return RecordRow(**{**given, "input_tokens": 100, "output_tokens": 10, "stream": True, **facts})


def test_arrivals_are_those_of_the_record(tmp_path: Path) -> None:
    """Time, tenant, lengths and what prompts share come back as they were played; nobody is lost."""
    path = tmp_path / "record.jsonl"
    served = record(path, requests=120)
    there = scene(read(path))
    played = [each.arrival for each in served]
    assert len(there.workload.arrivals) == len(played) == 120
    begin_ns = played[0].at_ns
    for mine, theirs in zip(there.workload.arrivals, played, strict=True):
        assert mine.at_ns == pytest.approx(theirs.at_ns - begin_ns, abs=2_000)
        assert (mine.tenant, mine.prompt_tokens) == (theirs.tenant, theirs.prompt_tokens)
        assert (mine.output_tokens, mine.max_new_tokens) == (theirs.output_tokens, theirs.max_new_tokens)
        assert len(mine.blocks) == len(theirs.blocks)
    same = {
        theirs.blocks[0]: mine.blocks[0]
        for mine, theirs in zip(there.workload.arrivals, played, strict=True)
        if theirs.blocks
    }
    assert len(set(same.values())) == len(same)
    assert (there.strategy, there.weights, there.workload.block_tokens) == ("steer", {"globex": 2.0}, 64)
    assert there.class_of == {"acme": "premium", "globex": "standard"}
    assert len(there.machines) == 3
    assert there.machines[0].timing.decode_base_ms == pytest.approx(11.8, rel=0.3)


def test_what_does_not_come(tmp_path: Path) -> None:
    """Quota's refusals, those that left, what costs nothing and what no replica could hold; each is said."""
    rows = [
        row(0),
        row(1, outcome="rejected"),
        row(2, outcome="left"),
        row(3, input_tokens=None),
        row(4, input_tokens=90_000),
        row(
            5,
            outcome="shed",
            input_tokens=None,
            output_tokens=None,
            expected_input_tokens=50,
            expected_output_tokens=40,
        ),
        row(6, sequences=4, output_tokens=40),
        row(7, max_new_tokens=5),
        row(8, pool="other"),
    ]
    there = scene(Log(rows=rows, fleets=[fleet(0.0)]))
    assert [each.id for each in there.rows] == ["0", "5", "6", "7"]
    assert [(each.prompt_tokens, each.output_tokens) for each in there.workload.arrivals] == [
        (100, 10),
        (50, 40),
        (100, 10),
        (100, 5),
    ]
    told = "\n".join(there.notes)
    assert "2 of 8 requests were refused by a quota" in told
    assert "1 of 8 requests do not fit" in told
    assert "1 of 8 requests have no counted output" in told


def test_blocks_fit_their_prompt() -> None:
    """What was predicted longer than it was counted loses its last blocks, or the replica would refuse it."""
    rows = [row(0, input_tokens=130, prefix="0000000a0000000b0000000c", block_tokens=64.0)]
    there = scene(Log(rows=rows, fleets=[fleet(0.0)]))
    assert there.workload.arrivals[0].blocks == (10, 11)


def test_replicas_are_those_of_most_requests() -> None:
    """With the last that was learned of them; drained ones are left out; changes are said."""
    two = ({}, {"address": "10.0.0.2:80"})
    lines = [
        fleet(0.0),
        fleet(1_002.0, *two),
        fleet(
            1_005.0, {"factor": 1.5}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80", "ready": False}
        ),
        fleet(1_009.0, {}),
        fleet(9_999.0, {"factor": 9.0}, {"address": "10.0.0.2:80"}),
    ]
    there = scene(Log(rows=[row(number) for number in range(10)], fleets=lines))
    assert [(each.member.address, each.factor) for each in there.machines] == [
        ("10.0.0.1:80", 1.5),
        ("10.0.0.2:80", 1.0),
    ]
    assert any("changed 2 times" in note for note in there.notes)


def test_unknown_memory_is_a_guess() -> None:
    """A roofline's, from the card's name and the model's; a kind that nothing was learned of too."""
    there = scene(
        Log(rows=[row(0)], fleets=[fleet(0.0, {"kv_tokens": 0, "hardware": "NVIDIA H100 80GB HBM3"})])
    )
    assert there.machines[0].kv_tokens > 10_000
    assert there.machines[0].timing.decode_base_ms > 0


def test_more_and_fewer_replicas() -> None:
    """The last go; those that come are like the typical one; none left is a mistake."""
    lines = [
        fleet(0.0, {"factor": 3.0}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80", "factor": 1.2})
    ]
    there = scene(Log(rows=[row(0)], fleets=lines))
    assert [each.member.address for each in there.replicas(-2).machines] == ["10.0.0.1:80"]
    more = there.replicas(2).machines
    assert [each.factor for each in more] == [3.0, 1.0, 1.2, 1.2, 1.2]
    assert len({each.member.address for each in more}) == 5
    with pytest.raises(LogError, match=r"had 3 replicas; -3 leaves none"):
        there.replicas(-3)


def test_a_part_begins_at_its_first_request() -> None:
    """And keeps rows and arrivals together."""
    there = scene(Log(rows=[row(number) for number in range(5)], fleets=[fleet(0.0)])).part(2, 4)
    assert [each.id for each in there.rows] == ["2", "3"]
    assert [each.at_ns for each in there.workload.arrivals] == [0, 1_000_000]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (Log(), "no request for pool ''"),
        (Log(rows=[row(0)]), "no fleet line with pool 'chat'"),
        (Log(rows=[row(0)], fleets=[fleet(0.0, {"ready": False})]), "had no ready replica"),
        (Log(rows=[row(0)], fleets=[fleet(0.0, members=[[1]])]), "cannot be used"),
        (Log(rows=[row(0, outcome="left")], fleets=[fleet(0.0)]), "no request for pool 'chat' can be played"),
    ],
)
def test_nothing_to_play(log: Log, said: str) -> None:
    """Each says what is missing."""
    with pytest.raises(LogError, match=said):
        scene(log)


def test_the_pool_that_was_asked_for() -> None:
    """Or the busiest; the others' names are told to who asks for one that is not there."""
    rows = [row(0), row(1), replace(row(2), pool="other")]
    log = Log(rows=rows, fleets=[fleet(0.0)])
    assert scene(log).pool == "chat"
    with pytest.raises(LogError, match="pools with some: chat, other"):
        scene(log, pool="none")
