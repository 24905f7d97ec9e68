"""cautions.py: what a good configuration allows, or does not do, that may not have been meant."""

from __future__ import annotations

import pytest

from extproc.config.cautions import cautions
from extproc.config.load import ConfigError, loads

POOLS = 'pools: [{name: chat, models: [m], endpoints: [{address: "10.0.0.1:80", region: eu}]}]'
TLS = ", tls: {certificate: c, key: k, client_ca: a}"
CLIENT = ", service_tls: {ca: /a, server_name: s, certificate: /c, key: /k}"


def said(text: str) -> list[str]:
    """The settings that cautions are of."""
    return [each.partition(":")[0] for each in cautions(loads(text))]


@pytest.mark.parametrize(
    ("listen", "more", "gateway", "expected"),
    [
        ("0.0.0.0:50051", "", "", ["service.listen"]),
        ("[::]:50051", "", "", ["service.listen"]),
        ("10.0.0.5:50051", "", "", ["service.listen"]),
        ("10.0.0.5:50051", ", token_file: /t", "", []),
        ("10.0.0.5:50051", ", token_env: T", "", []),
        ("10.0.0.5:50051", TLS, CLIENT, []),
        # Encrypted, and open to anybody all the same.
        ("10.0.0.5:50051", TLS.replace(", client_ca: a", ""), CLIENT, ["service.listen"]),
        ("127.0.0.1:50051", "", "", []),
        ("unix:/run/s.sock", "", "", []),
        ("127.0.0.1:1", ", ads_listen: ['0.0.0.0:2', '127.0.0.1:2', 'unix:/a']", "", ["service.ads_listen"]),
        ("127.0.0.1:1", ", ads_listen: ['0.0.0.0:2'], token_env: T", "", []),
        ("127.0.0.1:1", "", ", services: ['127.0.0.1:1', '127.0.0.1:2']", ["gateway.services"]),
        ("127.0.0.1:1", ", token_env: T", ", services: ['127.0.0.1:1', '127.0.0.1:2']", []),
    ],
)
def test_who_may_ask_for_decisions(listen: str, more: str, gateway: str, expected: list[str]) -> None:
    """Beyond loopback without proof, and several services that do not know each other."""
    text = f"service: {{listen: ['{listen}']{more}}}\ngateway: {{auth: none{gateway}}}\n{POOLS}"
    assert said(text) == expected


@pytest.mark.parametrize(
    ("picker", "regions", "expected"),
    [
        ("{enabled: true}", "[eu]", ["picker.tries"]),
        ("{enabled: true, tries: 3}", "[eu]", []),
        ("{enabled: true}", "null", []),
        ("{enabled: false}", "[eu]", []),
    ],
)
def test_a_gateway_that_retries_on_its_own(picker: str, regions: str, expected: list[str]) -> None:
    """Regions behind a picker that does not know how often its gateway tries."""
    tenant = f"{{name: acme, keys: [{{sha256: {'1f' * 32}}}], regions: {regions}}}"
    assert said(f"picker: {picker}\n{POOLS}\ntenants: [{tenant}]") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "http2"),
        ("picker: {enabled: true}", "grpcio"),
        ("picker: {enabled: true}\nservice: {transport: http2}", "http2"),
        ("service: {transport: grpcio}", "grpcio"),
    ],
)
def test_what_carries_the_calls(text: str, expected: str) -> None:
    """Gateways of others name their clusters as they like, which libnghttp2 does not."""
    assert loads(f"{text}\ngateway: {{auth: none}}\n{POOLS}").transport == expected


REGIONS = f"""
{POOLS}
gateway: {{failure_mode: open}}
tenants:
  - {{name: acme, keys: [{{sha256: {"1f" * 32}}}], regions: [REGION]}}
  - {{name: other, keys: [{{sha256: {"2f" * 32}}}]}}
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("REGION", "us"), ["gateway.failure_mode"]),
        (("REGION", "eu"), []),
        (("failure_mode: open", "failure_mode: open, failure_open_outside_regions: true"), []),
        (("failure_mode: open", "failure_mode: closed"), []),
        (("name: chat,", "name: chat, tenants: [other],"), ["gateway.failure_mode"]),
    ],
)
def test_open_that_is_closed(change: tuple[str, str], expected: list[str]) -> None:
    """One tenant's regions close `open` for all that Envoy cannot tell apart: the file says so itself."""
    text = REGIONS.replace(*change).replace("REGION", "us")
    assert said(text) == expected


@pytest.mark.parametrize(
    ("service", "gateway", "path"),
    [
        ("token_file: /t, token_env: T", "", "service.token_env"),
        ("tls: {certificate: c, key: k}", "", "gateway.service_tls"),
        (
            "tls: {certificate: c, key: k, client_ca: a}",
            "service_tls: {ca: /a, server_name: s}",
            "certificate",
        ),
        ("drain_s: 1", "service_tls: {ca: /a, server_name: s, key: /k}", "certificate"),
        ("drain_s: 1", "ads_services: ['10.0.0.1:2']", "gateway.ads_services"),
        ("ads_listen: ['unix:/s']", "service_tls: {ca: /a, server_name: s}", "gateway.service_tls"),
        ("listen: ['127.0.0.1:1'], ads_listen: ['127.0.0.1:1']", "", "service.ads_listen[0]"),
        ("listen: ['unix:/s']", "service_tls: {ca: /a, server_name: s}", "gateway.service_tls"),
    ],
)
def test_proofs_that_cannot_work_are_mistakes(service: str, gateway: str, path: str) -> None:
    """Each names the setting, before Envoy or the service would fail at it."""
    more = f", {gateway}" if gateway else ""
    with pytest.raises(ConfigError) as caught:
        loads(f"service: {{{service}}}\ngateway: {{auth: none{more}}}\n{POOLS}")
    assert path in str(caught.value.problems[0])


def test_who_is_told_of_pools_that_do_not_scale() -> None:
    """An external scaler, a webhook or pods' costs without a pool that scales are said."""
    told = "{external_scaler: {}, webhook: {url: 'http://h/x'}, pod_deletion_cost: {namespace: n}}"
    text = f"gateway: {{auth: none}}\nscaling: {told}\n{POOLS}"
    assert said(text) == ["scaling.external_scaler", "scaling.webhook", "scaling.pod_deletion_cost"]
    assert said(text.replace("models: [m],", "models: [m], scaling: {max_replicas: 2},")) == []
