"""From the configuration to what the core is built of: by the settings' own names."""

from __future__ import annotations

from dataclasses import fields

import pytest

from extproc.config.model import EndpointConfig, PoolConfig
from extproc.config.section import reloadable
from extproc.core.endpoint import Member
from extproc.core.fleet import PoolSpec
from extproc.service.build import member_of

#: Of a pool's specification what is made of its settings, and not one of them as it stands.
MADE = {"models", "endpoints", "tenants", "parameters", "starts", "load_ns", "reaction_ns", "site"}


def test_a_pools_setting_reaches_the_core_by_its_name() -> None:
    """Whoever adds one to the file and to PoolSpec need write nothing between them."""
    assert {each.name for each in fields(PoolSpec)} - MADE <= PoolConfig.model_fields.keys()
    assert set(Member._fields) <= EndpointConfig.model_fields.keys()


def test_a_replica_has_its_pools_settings_where_it_has_none() -> None:
    """And its own where it has: nought is one, too."""
    pool = PoolConfig(
        name="p", models=["m"], hardware="L4", gpus=2, kv_capacity_tokens=1_000, price_per_hour=3.0
    )
    own = EndpointConfig(address="10.0.0.1:1", kv_capacity_tokens=0, price_per_hour=1.0)
    assert member_of(pool, own) == Member(
        "10.0.0.1:1", hardware="L4", gpus=2, kv_capacity_tokens=0, price_per_hour=1.0
    )


@pytest.mark.parametrize("name", ["endpoints", "discovery", "circuit_breakers", "outlier_detection", "name"])
def test_what_envoy_holds_is_not_reloadable(name: str) -> None:
    """Whatever a pool's clusters are made of."""
    assert name in PoolConfig.model_fields
    assert name not in reloadable(PoolConfig)
