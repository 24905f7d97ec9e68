"""From the configuration to what the core is built of: by the settings' own names."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from extproc.config.load import loads
from extproc.config.model import EndpointConfig, PoolConfig
from extproc.config.section import reloadable
from extproc.core.endpoint import Member
from extproc.core.fleet import PoolSpec
from extproc.core.spill.values import RateLimits
from extproc.service.build import member_of, rate_limits_of

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


SITES = """
gateway: {{auth: none}}
site: {{name: shop, tier: edge, peers: [{{name: hub, keys_file: {folder}/keys}}]}}
pools:
  - {{name: near, models: [m], endpoints: [{{address: "10.0.0.1:1"}}], spill: {{to: hub}}}}
  - {{name: hub, models: [m], endpoints: [{{address: "10.0.0.2:1"}}], remote: {{site: hub}}{limits}}}
"""


def test_a_sites_refusal_does_not_close_the_way(tmp_path: Path) -> None:
    """Its next word says whether it has room; a provider says no such thing. A file's limits hold."""
    (tmp_path / "keys").write_text(f"first {'x' * 64}\n")
    limits = ", rate_limits: {requests_per_minute: 5}"
    assert not rate_limits_of(loads(SITES.format(folder=tmp_path, limits="")))
    assert rate_limits_of(loads(SITES.format(folder=tmp_path, limits=limits))) == {
        "hub": RateLimits(requests_per_minute=5)
    }
