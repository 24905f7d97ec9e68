"""The JSON Schema says of a file's structure what the models say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from extproc.config.schema import schema
from tests.stand import schemas

ROOT = Path(__file__).parents[2]
GOOD = [
    *sorted((ROOT / "envoy" / "examples").glob("*.yaml")),
    ROOT / "examples" / "one-machine.yaml",
    ROOT / "deploy" / "compose" / "steersman.yaml",
]
BAD = Path(__file__).parent / "bad"
#: Files that a schema has nothing to say of: no YAML at all, or names that stand there twice.
NO_YAML = frozenset(
    [
        "address_ipv6_unquoted",
        "numbers_of_other_bases",
        "template",
        "alias_bomb",
        "alias_of_itself",
        "alias_unknown",
        "bad_indent",
        "colon_twice",
        "impossible_date",
        "list_as_key",
        "no_colon",
        "not_yaml",
        "quote_open",
        "repeated_key",
        "repeated_key_deep",
        "reserved_character",
        "tab",
        "too_deep",
        "two_documents",
        "unknown_tag",
    ]
)
#: Mistakes that JSON Schema cannot say: what one setting means for another, what is there twice, what a name
#: stands for; and texts that validators read with more sense than a pattern has (addresses, networks, times).
BEYOND = frozenset(
    [
        "address_ipv6_without_brackets",
        "key_expires",
        "adapters",
        "admin",
        "auth_none_with_proofs",
        "auth_without_tenants",
        "certificate_sans",
        "certificate_sans_twice",
        "class_failure_mode",
        "class_floor",
        "class_twice",
        "class_unknown",
        "endpoint_host_name",
        "routes_across",
        "endpoint_in_two_pools",
        "endpoint_no_port",
        "endpoint_port",
        "endpoint_scope",
        "endpoint_twice",
        "endpoint_url",
        "experiment",
        "families",
        "gateway_admin",
        "gateway_default_model",
        "gateway_tls",
        "identity_secret",
        "jwt_keys",
        "jwt_subject",
        "jwt_subject_twice",
        "key_hashes",
        "key_times",
        "key_times_order",
        "key_weak",
        "launcher_too_little",
        "limits_ttl",
        "meant_names",
        "model_quotas",
        "model_twice",
        "otel_nothing",
        "otel_path",
        "picker_objectives",
        "pool_bytes_per_token",
        "pool_name_twice",
        "pool_no_source",
        "quality_floor",
        "service_listen",
        "service_listen_twice",
        "sites",
        "spill",
        "routes_open",
        "routes_open_path",
        "spill_after_failure",
        "spill_nowhere",
        "strategy_parameters",
        "telemetry_network",
        "telemetry_no_nodes",
        "telemetry_nodes",
        "tenant_models",
        "tenant_twice",
        "tenant_without_key",
        "trusted_proxy",
        "trusted_proxy_header",
        "tuning_pool",
        "upstream",
        "upstream_pairs",
    ]
)
ALL = {path.stem for path in BAD.glob("*.yaml")}


def mistakes(path: Path) -> list[Any]:
    return schemas.mistakes(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_it_is_a_schema() -> None:
    """Of the dialect that it names."""
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", GOOD, ids=[path.stem for path in GOOD])
def test_good_files_validate(path: Path) -> None:
    """Every example is good by the schema too."""
    assert mistakes(path) == []


@pytest.mark.parametrize("name", sorted(ALL - NO_YAML - BEYOND))
def test_mistakes_of_structure_are_refused(name: str) -> None:
    """Every broken file but those that are named above with the reason."""
    assert mistakes(BAD / f"{name}.yaml")


@pytest.mark.parametrize("name", sorted(BEYOND))
def test_what_is_said_to_be_beyond_it_is(name: str) -> None:
    """A file that the schema refuses too belongs on no list of exceptions."""
    assert mistakes(BAD / f"{name}.yaml") == []


def test_names_are_the_files_own_and_have_their_text() -> None:
    """`class`, with what it is."""
    tenant = schema()["$defs"]["TenantConfig"]["properties"]
    assert tenant["class"]["description"] == "Its service class."
    assert "service_class" not in tenant
