from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.predict.timing import Timing
from extproc.sim.run import DecodeRun
from extproc.sim.timing import HARDWARE, Hardware, hardware_named
from tests.sim.conftest import MS

BATCHES = {
    "hardware": st.sampled_from(list(HARDWARE.values())),
    "batch": st.integers(1, 128),
    "context": st.integers(2, 4000),
    "factor": st.floats(0.1, 30),
    "began_ns": st.integers(0, 10**14),
}


def a_run(hardware: Hardware, batch: int, context: int, factor: float, began_ns: int) -> DecodeRun:
    return DecodeRun(
        hardware, batch, kv_tokens=batch * context, factor=factor, began_ns=began_ns, first_step=7
    )


@given(**BATCHES, steps=st.integers(1, 1024))
def test_a_run_takes_as_long_as_its_steps(
    hardware: Hardware, batch: int, context: int, factor: float, began_ns: int, steps: int
) -> None:
    """The closed form is the sum of the published step times, to the rounding."""
    run = a_run(hardware, batch, context, factor, began_ns)
    total_ms = sum(hardware.decode_ms(batch, batch * (context + done)) for done in range(steps))
    assert run.ends_ns(7 + steps) - began_ns == pytest.approx(total_ms * factor * MS, abs=2)


@given(**BATCHES, elapsed_ns=st.integers(0, 10**12))
def test_the_steps_done_are_those_that_have_ended(
    hardware: Hardware, batch: int, context: int, factor: float, began_ns: int, elapsed_ns: int
) -> None:
    """A step counts from the nanosecond in which it ends, and not one before."""
    run = a_run(hardware, batch, context, factor, began_ns)
    now_ns = began_ns + elapsed_ns
    step = run.steps_at(now_ns)
    assert run.ends_ns(step) <= now_ns < run.ends_ns(step + 1)
    if step > 7:
        assert run.steps_at(run.ends_ns(step)) == step
        assert run.steps_at(run.ends_ns(step) - 1) == step - 1


@pytest.mark.parametrize("base_ms", [0.0, 4e-7, 1e-6])
def test_no_step_is_shorter_than_a_nanosecond(base_ms: float) -> None:
    """Hardware that takes no time still moves on."""
    free = Hardware(
        name="free",
        source="made up",
        kv_capacity_tokens=1,
        timing=Timing(base_ms, 0.0, 0.0, 0.0, 0.0, 0.0),
    )
    run = a_run(free, 1, 2, 1.0, 100)
    assert run.ends_ns(7 + 5) == 105
    assert run.steps_at(103) == 7 + 3


def test_each_step_finds_a_batch_of_tokens_more() -> None:
    """Two steps of ten sequences on an A100: the second reads ten KV tokens more."""
    hardware = hardware_named("a100-80g/llama-3-8b")
    run = a_run(hardware, 10, 100, 1.0, 0)
    first = (9.8 + 2.0 + 0.029 * 10 + 9.2e-5 * 1000) * MS
    assert run.ends_ns(8) == round(first)
    assert run.ends_ns(9) == round(2 * first + 9.2e-5 * 10 * MS)
