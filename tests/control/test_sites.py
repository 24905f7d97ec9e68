"""Envoy's part in sites: whose header comes in, and where what fails at another site is tried next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.load import loads
from extproc.config.site_checks import returning
from extproc.control.bootstrap import render_bootstrap, to_yaml
from extproc.core.contract import SITE_HEADER

EDGE: dict[str, Any] = {
    "gateway": {"auth": "none"},
    "site": {"name": "shop", "tier": "edge", "peers": [{"name": "hub", "keys_file": "/etc/hub.keys"}]},
    "pools": [
        {
            "name": "near",
            "models": ["small"],
            "endpoints": [{"address": "10.0.0.1:80"}],
            "spill": {"to": "hub"},
        },
        {
            "name": "hub",
            "models": ["small"],
            "endpoints": [{"address": "10.0.0.2:80"}],
            "upstream": {"tls": {"server_name": "hub.example"}},
            "remote": {"site": "hub"},
        },
    ],
}


def rendered(config: dict[str, Any], mode: Any = "static") -> str:
    text = to_yaml(render_bootstrap(loads(yaml.safe_dump(config), name="x"), mode=mode))
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("forwards", [False, True])
def test_who_takes_requests_of_no_site_lets_no_word_in(forwards: bool) -> None:
    """Envoy takes the header away before anything sees it, unless a site may send requests on."""
    peers = [{"name": "hub", "keys_file": "/etc/hub.keys", "forwards": forwards}]
    text = rendered({**EDGE, "site": {**EDGE["site"], "peers": peers}})
    assert (f"- remove: {SITE_HEADER}" in text) is not forwards


def test_the_next_try_is_at_home() -> None:
    """One cluster a class, of both pools' own clusters: the first try there, as many as there may be here."""
    found = yaml.safe_load(rendered(EDGE))["static_resources"]["clusters"]
    cluster = next(each for each in found if each["name"] == "returning.hub/near/standard")
    parts = [each["name"] for each in cluster["cluster_type"]["typed_config"]["clusters"]]
    assert parts == ["pool.hub/standard", *["pool.near/standard"] * 2]


@pytest.mark.parametrize("http2", [True, "auto"])
@pytest.mark.parametrize("pool", [0, 1])
def test_another_version_of_http_does_not_come_back(http2: object, pool: int) -> None:
    """Envoy sends the same request once more as it sent the first: one version of HTTP is a cluster's."""
    pools = [dict(each) for each in EDGE["pools"]]
    pools[pool]["upstream"] = {**pools[pool].get("upstream", {}), "tls": {"server_name": "hub.example"}}
    pools[pool]["upstream"]["http2"] = http2
    assert "returning." not in rendered({**EDGE, "pools": pools})


def test_no_key_stands_in_a_script() -> None:
    """What reaches each pool is named there; the keys are Envoy's to put in, under names of ours."""
    pools = [dict(each) for each in EDGE["pools"]]
    for i, name in enumerate(("near", "hub")):
        key = {"file": f"/etc/{name}.key", "header": "x-api-key"}
        pools[i]["upstream"] = {"key": key, "path_prefix": f"/{name}", "headers": {"add": {"x-a": 'b"\\'}}}
    found = yaml.safe_load(rendered({**EDGE, "pools": pools}))["static_resources"]["clusters"]
    cluster = next(each for each in found if each["name"].startswith("returning."))
    (options,) = cluster["typed_extension_protocol_options"].values()
    script = options["http_filters"][2]["typed_config"]["default_source_code"]["inline_string"]
    second = 'key = "x-api-key", told = "x-steersman-key-home", prefix = "/near"'
    assert f'local SECOND = {{ {second}, headers = {{["x-a"] = "b\\"\\\\"}} }}' in script
    assert "@" not in script


def test_an_example_of_the_page_is_one() -> None:
    """Both files of docs/sites.md are taken as they stand, but for the hash to be pasted."""
    page = Path("docs/sites.md").read_text(encoding="utf-8")
    edge = page.split("```yaml\n")[1].split("```")[0].replace("PASTE-THE-HASH-HERE", "a" * 64)
    config = loads(edge, name="edge")
    assert config.pools[1].remote is not None
    assert [(there.name, home.name) for there, home in returning(config)] == [("hub", "near")]
