from __future__ import annotations

import pytest

from extproc.core.strategies import STRATEGIES, build
from extproc.tuning.space import Axis, checked, space


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_range_is_the_strategys_to_take(name: str) -> None:
    """Whatever is searched, its ends included, builds; defaults lie within; a log scale begins above 0."""
    for axis in space(name):
        if axis.switch:
            assert isinstance(axis.default, bool)
            continue
        for end in (axis.low, axis.high):
            build(name, {axis.name: int(end) if axis.whole else end})
        assert axis.low <= float(axis.default) <= axis.high, axis
        assert axis.low < axis.high
        assert axis.low > 0 or not axis.log


def test_steers() -> None:
    """Its numbers and its switch; a share is searched as one."""
    axes = {axis.name: axis for axis in space("steer")}
    assert axes["guard"].switch
    assert axes["queue_tokens"] == Axis("queue_tokens", 1024, 128, 16_384, whole=True, log=True)
    assert axes["kv_share"].high == 1.0
    assert not space("round_robin")


def test_a_wrong_value_is_refused() -> None:
    """As by the configuration."""
    assert checked("steer", {"queue_tokens": 9}) == {"queue_tokens": 9}
    with pytest.raises(ValueError, match="queue_tokens is at least"):
        checked("steer", {"queue_tokens": -9})
    with pytest.raises(ValueError, match="no strategy 'x'"):
        space("x")
