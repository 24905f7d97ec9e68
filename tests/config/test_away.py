"""What Envoy may do with requests while the service is away."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from extproc.config.away import CLOSED, away_targets, fallback, outside
from extproc.config.load import ConfigError, loads
from extproc.config.model import Config

EU, US = "127.0.0.1:1", "127.0.0.1:2"
A, B = "a" * 64, "b" * 64


def config(**changes: Any) -> Config:
    """Open, a tenant of the EU and one of anywhere, by keys; one pool in both regions."""
    whole: dict[str, Any] = {
        "gateway": {"failure_mode": "open"},
        "pools": [
            {
                "name": "p",
                "models": ["m"],
                "endpoints": [{"address": EU, "region": "eu"}, {"address": US, "region": "us"}],
            }
        ],
        "tenants": [
            {"name": "bound", "regions": ["eu"], "keys": [{"sha256": A}]},
            {"name": "free", "keys": [{"sha256": B}]},
        ],
    }
    return loads(yaml.safe_dump(whole | changes))


def test_regions_close_an_open_gateway() -> None:
    """By a key Envoy cannot tell whose a request is, so nobody is sent where somebody must not be."""
    assert outside(config(), config().pools[0]) == ["bound"]
    assert fallback(config()) is CLOSED
    assert away_targets(config()) == set()


def test_regions_that_hold_leave_it_open() -> None:
    """Every replica is listed, and each lies where the tenant may be served."""
    here = {"name": "p", "models": ["m"], "endpoints": [{"address": EU, "region": "eu"}]}
    assert fallback(config(pools=[here])).pool == "p"
    dns = here | {"discovery": {"dns": [{"name": "replicas", "port": 80}]}}
    assert fallback(config(pools=[dns])) is CLOSED, "who joins may be anywhere"


def test_the_file_may_say_otherwise() -> None:
    """An operator's own word, by a setting that says what it costs."""
    said = config(gateway={"failure_mode": "open", "failure_open_outside_regions": True})
    assert fallback(said).pool == "p"


def test_a_reserved_pool_takes_nobody_unknown() -> None:
    """Not even as everybody's fallback."""
    own = {"name": "own", "models": ["m"], "tenants": ["free"], "endpoints": [{"address": US}]}
    tenants = [{"name": "free", "keys": [{"sha256": B}]}]
    assert fallback(config(pools=[own], tenants=tenants)) is CLOSED
    shared = {"name": "all", "models": ["m"], "endpoints": [{"address": EU}]}
    assert fallback(config(pools=[own, shared], tenants=tenants)).pool == "all"


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ([("p", ["m"], ["nobody"])], "pools[0].tenants[0]: no tenant 'nobody'"),
        (
            [("p", ["m"], None), ("q", ["m"], None)],
            "pools[1].models[0]: 'm' is already at pools[0].models[0]",
        ),
        ([("p", ["m"], ["free"]), ("q", ["m"], ["free"])], "'m' is reserved for 'free' in pool 'p' too"),
        ([("p", ["m"], ["free", "free"])], "pools[0].tenants[1]: 'free' is already at"),
    ],
)
def test_reservations_that_cannot_be_meant(
    pools: list[tuple[str, list[str], list[str] | None]], says: str
) -> None:
    """A tenant finds a model in one pool of its own at most, and a pool is somebody's."""
    listed = [
        {"name": n, "models": models, "endpoints": [{"address": f"127.0.0.1:{i + 1}"}]}
        | ({} if who is None else {"tenants": who})
        for i, (n, models, who) in enumerate(pools)
    ]
    with pytest.raises(ConfigError) as caught:
        config(pools=listed)
    assert any(says in str(problem) for problem in caught.value.problems), caught.value.problems
