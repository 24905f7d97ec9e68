"""tenancy.py: what the demo's configuration has to show is there, and loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.config.load import load
from extproc.config.model import Config
from extproc.demo.replicas import PORTS_NEEDED, lay_out
from extproc.demo.tenancy import CHEAP_MODEL, FAMILY, STRONG_MODEL, TENANTS
from extproc.demo.wave import CREST_PER_S, LASTS_S, PERIOD_S, rate


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(lay_out(tmp_path, list(range(20_000, 20_000 + PORTS_NEEDED)), speed=1.0, seed=1).config)


def test_three_classes_each_with_a_tenant(config: Config) -> None:
    """Every class that is served is somebody's, so that each has something to show."""
    assert [each.name for each in config.classes] == ["premium", "standard", "batch"]
    assert {tenant.service_class for tenant in config.tenants} == {each.name for each in config.classes}


def test_a_cheap_and_a_strong_pool_make_a_family(config: Config) -> None:
    """The strong one costs more, and its few permits make the batch wait here."""
    cheap, strong, _ = config.pools
    assert cheap.price.output_per_million < strong.price.output_per_million
    assert {each.max_concurrent for each in strong.endpoints} == {3}
    assert [(family.name, family.models) for family in config.families] == [
        (FAMILY, [CHEAP_MODEL, STRONG_MODEL])
    ]


def test_a_pool_that_grows_and_shrinks(config: Config) -> None:
    """From none to four and back on a wave; one that is smaller at its ends than at its crest."""
    elastic = config.pools[2].scaling
    assert elastic is not None
    assert (elastic.min_replicas, elastic.max_replicas) == (0, 4)
    assert elastic.launcher is not None
    assert [rate(0.0), rate(LASTS_S), rate(PERIOD_S - 1)] == pytest.approx([0.0, 0.0, 0.0])
    assert rate(LASTS_S / 2) == rate(PERIOD_S + LASTS_S / 2) == CREST_PER_S


def test_every_tenant_has_limits_and_one_is_there_to_be_hit(config: Config) -> None:
    """The page has a quota's use to show for each; who is meant to be refused says by what."""
    assert all(tenant.quota.model_dump(exclude_defaults=True) for tenant in config.tenants)
    assert [(tenant.name, tenant.bites) for tenant in TENANTS if tenant.bites] == [
        ("free-trial", "30 requests a minute")
    ]


def test_an_experiment_runs_and_a_rule_tells_of_the_trial(config: Config) -> None:
    """Neither pane is empty."""
    assert [list(each.arms) for each in config.experiments.values()] == [["steer", "least_work"]]
    assert [rule.name for rule in config.alerts.rules] == ["TrialOverItsQuota"]
