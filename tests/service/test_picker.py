"""The service as a picker: endpoints that join because a gateway names them, and what it says of itself."""

from __future__ import annotations

from extproc.config.load import loads
from extproc.config.model import Config
from extproc.core.fleet import Fleet
from extproc.service.build import pool_specs
from extproc.service.picker import PickerPart
from extproc.service.roster import REGISTERED_MAX, Roster
from tests.stand.schedulers import make_processor, make_scheduler

CONFIG = """
gateway: {auth: none}
picker: {enabled: true, discover: true, forget_s: 10}
pools:
  - {name: chat, models: [m], endpoints: [{address: 10.0.0.1:80}]}
  - {name: code, models: [c], endpoints: [{address: 10.0.0.9:80}]}
"""
SECOND = 1_000_000_000


class World:
    """A roster and the part; `now_ns` is the clock."""

    def __init__(self, config: Config) -> None:
        self.now_ns = 0
        self.fleet = Fleet(pool_specs(config))
        self.roster = Roster(config, self.fleet)
        scheduler = make_scheduler(self.fleet)
        processor = make_processor(scheduler, body_bytes_max=1_000, clock=lambda: self.now_ns)
        self.part = PickerPart(
            config,
            processor,
            self.roster,
            settle=lambda _: None,
            first_token=lambda *_: True,
            clock=lambda: self.now_ns,
        )

    def addresses(self, pool: str = "chat") -> list[str]:
        return [endpoint.address for endpoint in self.fleet.pools[pool].endpoints]


def test_a_stranger_joins_the_pool_of_the_model() -> None:
    """With the pool's settings, ready at once; one of another pool stays where it is."""
    world = World(loads(CONFIG))
    world.part.picker.join("m", "t", ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"))
    assert world.addresses() == ["10.0.0.1:80", "10.0.0.2:80"]
    assert world.addresses("code") == ["10.0.0.9:80"]
    endpoint = world.fleet.endpoint("chat", "10.0.0.2:80")
    assert endpoint is not None
    assert endpoint.ready
    world.part.picker.join("unknown", "t", ("10.0.0.3:80",))
    assert world.fleet.owner("10.0.0.3:80") is None
    assert world.part.status()["joined"] == {"chat": ["10.0.0.2:80"]}


def test_who_is_named_no_more_is_forgotten() -> None:
    """After forget_s; each request that names it counts."""
    world = World(loads(CONFIG))
    world.part.picker.join("m", "t", ("10.0.0.2:80", "10.0.0.3:80"))
    for _ in range(11):
        world.now_ns += SECOND
        world.part.picker.join("m", "t", ("10.0.0.3:80",))
        world.part.step(now_ns=world.now_ns)
    assert world.addresses() == ["10.0.0.1:80", "10.0.0.3:80"]
    world.part.picker.join("m", "t", ("10.0.0.2:80",))
    assert "10.0.0.2:80" in world.addresses()


def test_joined_endpoints_outlive_a_reload() -> None:
    """Of the pools that stay."""
    world = World(loads(CONFIG))
    world.part.picker.join("m", "t", ("10.0.0.2:80",))
    new = loads(CONFIG.replace("discover: true", "discover: false"))
    world.roster.apply(new)
    world.part.apply(new)
    assert world.addresses() == ["10.0.0.1:80", "10.0.0.2:80"]
    assert not world.part.picker.settings.discover


def test_joined_endpoints_are_bounded() -> None:
    """A gateway that names half the internet fills one bounded table."""
    world = World(loads(CONFIG))
    many = tuple(f"10.1.{i // 250}.{i % 250}:80" for i in range(REGISTERED_MAX + 50))
    world.part.picker.join("m", "t", many)
    joined = world.part.status()["joined"]
    assert isinstance(joined, dict)
    assert len(joined["chat"]) == REGISTERED_MAX
