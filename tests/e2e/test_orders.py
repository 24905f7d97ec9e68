"""The decision port as Envoy reaches it: with mutual TLS and a token, and with nobody else let near."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from gateway import Gateway, chat_pool, free_ports, wait_for
from replicas import Replicas, specs

from extproc.wire.orders import STATUS
from extproc.wire.server import ACCESS_LOG, EXT_PROC

NAME, TOKEN = "steersman.test", "the-token-of-this-gateway"
ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
BODY = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of the service and of Envoy."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make throw-away certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def make(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    for name in ("ca", "service", "envoy"):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
        signed = [] if name == "ca" else ["-CA", "ca.pem", "-CAkey", "ca.key"]
        names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{NAME}"]
        make("req", "-x509", *key, *signed, *names, "-days", "2", "-out", f"{name}.pem")
    return folder


@pytest.fixture(scope="module", params=["one port", "apart"])
def gateway(certificates: Path, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """One service behind TLS and a token, and an Envoy that takes its pools from it: at the decision port,
    or at an address of their own."""
    (certificates / "token").write_text(TOKEN)
    server = {
        name: str(certificates / file)
        for name, file in (("certificate", "service.pem"), ("key", "service.key"))
    }
    client = {
        name: str(certificates / file) for name, file in (("certificate", "envoy.pem"), ("key", "envoy.key"))
    }
    authority = str(certificates / "ca.pem")
    with Replicas(specs(1)) as replicas:
        opened = Gateway(
            chat_pool(replicas.addresses),
            mode="ads",
            gateway={"service_tls": {"ca": authority, "server_name": NAME, **client}},
        )
        opened.config["service"] |= {
            "tls": {**server, "client_ca": authority},
            "token_file": str(certificates / "token"),
        }
        if request.param == "apart":
            opened.config["service"]["ads_listen"] = [f"127.0.0.1:{free_ports(1)[0]}"]
        opened.write_config()
        with opened:
            yield opened


def unproven(gateway: Gateway) -> dict[str, int]:
    """What was not taken so far: of strangers, where another test was one."""
    counts = gateway.status()["counts"]
    return {name: n for name, n in counts.items() if name.endswith((".forged", ".unauthenticated"))}


def test_envoy_proves_who_it_is_on_every_way(gateway: Gateway) -> None:
    """Decisions, pools by ADS, first tokens and records all come through TLS, with the token."""
    wrong = unproven(gateway)
    ended = gateway.status()["counts"].get("settled.ok", 0)
    status, _, answer = gateway.call("/v1/chat/completions", BODY)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 4)
    status, _, _ = gateway.call("/v1/chat/completions", {**BODY, "stream": True})
    assert status == 200
    wait_for("both ends", lambda: gateway.status()["counts"].get("settled.ok") == ended + 2)
    assert gateway.status()["counts"]["events.first_token"] >= 1
    assert unproven(gateway) == wrong


def test_a_stranger_at_the_port_gets_nothing(gateway: Gateway, certificates: Path) -> None:
    """In the clear, without a certificate, or with Envoy's own but no token."""
    authority = (certificates / "ca.pem").read_bytes()
    envoys = (certificates / "envoy.key").read_bytes(), (certificates / "envoy.pem").read_bytes()
    named = [("grpc.ssl_target_name_override", NAME)]
    addresses = [gateway.service_address, *gateway.config["service"].get("ads_listen", [])]
    channels = [
        (how, channel)
        for where in addresses
        for how, channel in (
            ("in the clear", grpc.insecure_channel(where)),
            ("no certificate", grpc.secure_channel(where, grpc.ssl_channel_credentials(authority), named)),
            ("no token", grpc.secure_channel(where, grpc.ssl_channel_credentials(authority, *envoys), named)),
        )
    ]
    for how, channel in channels:
        with channel:
            for method in (
                f"{EXT_PROC}/Process",
                f"{ACCESS_LOG}/StreamAccessLogs",
                f"{ADS}/StreamAggregatedResources",
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    list(channel.stream_stream(f"/{method}")(iter([b""]), timeout=20))
                expected = "UNAUTHENTICATED" if how == "no token" else "UNAVAILABLE"
                assert caught.value.code().name == expected, (how, method)
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/{STATUS}/Drain")(b"{}", timeout=20)
    for where in addresses:
        host, _, port = where.rpartition(":")
        assert ssl.get_server_certificate((host, int(port))).startswith("-----BEGIN")


def test_each_port_serves_its_own_alone(gateway: Gateway, certificates: Path) -> None:
    """Whoever may call: where pools have an address of their own, decisions are made at the other alone."""
    told = gateway.config["service"].get("ads_listen", [])
    files = (certificates / "ca.pem", certificates / "envoy.key", certificates / "envoy.pem")
    credentials = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
    named = [("grpc.ssl_target_name_override", NAME)]
    proof = (("authorization", f"Bearer {TOKEN}"),)
    elsewhere = [(where, f"{EXT_PROC}/Process") for where in told]
    elsewhere += [(gateway.service_address, f"{ADS if told else STATUS}/StreamAggregatedResources")]
    for where, method in elsewhere:
        with grpc.secure_channel(where, credentials, named) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                list(channel.stream_stream(f"/{method}")(iter([b""]), timeout=20, metadata=proof))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_token_is_in_no_file_that_others_read(gateway: Gateway, tmp_path: Path) -> None:
    """`envoy-config -o` writes it for its user alone, where the token stands in it."""
    from processes import steersman

    written = tmp_path / "envoy.yaml"
    steersman("envoy-config", "-f", str(gateway.config_file), "-o", str(written))
    assert TOKEN in written.read_text()
    assert written.stat().st_mode & 0o077 == 0
