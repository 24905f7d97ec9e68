"""Upstreams as users have them, through the real Envoy: TLS, HTTP/2, paths, headers, the engine's key."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway import KEYS, Gateway, free_ports, wait_for
from identity import Authority
from processes import run, steersman
from shaped_engine import ShapedEngine
from tls_engine import TlsFronts, expired

pytestmark = pytest.mark.envoy
#: By conftest.py: the last tests change the keys.
IN_ORDER = True

CHAT = "/v1/chat/completions"
KEY = "sk-of-the-engine-31337"
NEXT = "sk-the-next-one-42424"
NAME = "llm.test"
#: What each front of the engine is: its certificate, and what it speaks.
GOOD = ("good", "auto", "h2", "h2c", "mutual", "prefixed", "old")
BAD = ("stranger", "expired", "misnamed", "uninvited", "ancient")


class Site:
    """An engine behind fronts of every kind."""

    def __init__(self, folder: Path, engine: ShapedEngine) -> None:
        ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        good = dict(zip(("certificate", "key"), ours.issue("good", f"DNS:{NAME}"), strict=True))
        stranger = dict(zip(("certificate", "key"), theirs.issue("good", f"DNS:{NAME}"), strict=True))
        late = dict(zip(("certificate", "key"), expired(ours, "late", f"DNS:{NAME}"), strict=True))
        other = dict(zip(("certificate", "key"), ours.issue("other", "DNS:other.test"), strict=True))
        self.ca = str(ours.certificate)
        self.client = tuple(map(str, ours.issue("client", "DNS:gateway.test")))
        fronts: dict[str, dict[str, Any]] = {
            "good": {**good, "alpn": ("http/1.1",)},
            "auto": good,
            "h2": {**good, "alpn": ("h2",), "codec": "HTTP2"},
            "h2c": {"codec": "HTTP2"},
            "mutual": {**good, "client_ca": self.ca},
            "prefixed": {**good, "prefix": "/openai"},
            "old": {**good, "versions": ("TLSv1_2", "TLSv1_2")},
            "stranger": stranger,
            "expired": late,
            "misnamed": other,
            "uninvited": {**good, "client_ca": self.ca},
            "ancient": {**good, "versions": ("TLSv1_2", "TLSv1_2")},
        }
        keys = dict.fromkeys(fronts, f"authorization: Bearer {KEY}")
        keys["prefixed"] = f"x-api-key: {KEY}"
        self.fronts = TlsFronts(folder, engine.addresses[0], fronts, keys)
        self.key = folder / "engine-key"
        self.key.write_text(f"{KEY}\n")

    def pools(self) -> dict[str, dict[str, Any]]:
        tls = {"ca": self.ca, "server_name": NAME}
        cert, key = self.client
        ways: dict[str, dict[str, Any]] = {
            **{name: {"tls": tls} for name in (*GOOD, *BAD)},
            "auto": {"tls": tls, "http2": "auto", "headers": {"add": {"X-Org": "50%off"}}},
            "h2": {"tls": tls, "http2": True},
            "h2c": {"http2": True},
            "mutual": {"tls": {**tls, "cert": cert, "key": key}},
            "prefixed": {"tls": tls, "path_prefix": "/openai"},
            "ancient": {"tls": {**tls, "min_version": "1.3"}},
        }
        own = {"file": str(self.key)}
        return {
            name: {
                "models": [name],
                "engine": "vllm",
                "upstream": {
                    **way,
                    "key": {**own, "header": "x-api-key"} if name == "prefixed" else own,
                },
                "addresses": [self.fronts.address(name)],
            }
            for name, way in ways.items()
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ShapedEngine() as engine:
        site = Site(tmp_path_factory.mktemp("site"), engine)
        with site.fronts:
            yield site


@pytest.fixture(scope="module", params=["static", "ads"])
def gateway(request: pytest.FixtureRequest, site: Site) -> Iterator[Gateway]:
    site.key.write_text(f"{KEY}\n")
    probes = {"interval_s": 0.5}
    (port,) = free_ports(1)
    admin = {"listen": f"127.0.0.1:{port}"}
    open_to = {"failure_mode": "open", "default_model": "prefixed"}
    with Gateway(site.pools(), mode=request.param, gateway=open_to, probes=probes, admin=admin) as gateway:
        yield gateway


def ask(gateway: Gateway, model: str, **more: Any) -> tuple[int, dict[str, str], Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], **more}
    return gateway.call(CHAT, body, headers={"x-tokens": "3", "x-api-key": KEYS["acme"]})


@pytest.mark.parametrize("name", GOOD)
def test_it_is_reached(gateway: Gateway, name: str) -> None:
    """Streamed and whole, by the name in its certificate, with the engine's key and without the client's."""
    wait_for("the pool", lambda: ask(gateway, name)[0] == 200, timeout_s=20)
    for stream in (False, True):
        status, headers, answer = ask(gateway, name, stream=stream)
        assert status == 200, answer
        if stream:
            assert answer.endswith(b"data: [DONE]\n\n")
        else:
            assert answer["usage"]["completion_tokens"] == 3
        if name != "h2c":
            assert (headers["x-sni"], headers["x-host"]) == (NAME, NAME)
        assert headers["x-version"] == ("HTTP/2" if name in ("auto", "h2", "h2c") else "HTTP/1.1")
        assert headers["x-path"] == ("/openai" if name == "prefixed" else "") + CHAT
        assert headers.get("x-key-seen", "-") == (KEY if name == "prefixed" else "-")
        assert headers.get("x-org-seen", "-") == ("50%off" if name == "auto" else "-")
        assert headers.get("x-prefix-seen", "-") == "-"


#: What is wrong with each, in the cause of its health; and what a client gets: 503 where none could be tried.
WRONG = {
    "stranger": "an authority that upstream.tls.ca does not hold",
    "expired": "its certificate has expired",
    "misnamed": "its certificate has another name",
    "uninvited": "wants a client certificate",
    "ancient": "speaks no version of TLS",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(gateway: Gateway, site: Site, name: str) -> None:
    """No client is served by whom we cannot verify, or who wants what we lack; the cause names the mend."""
    address = site.fronts.address(name)
    status, headers, answer = ask(gateway, name)
    assert status == 503, answer
    assert "x-sni" not in headers
    assert answer["error"]["code"]
    cause = wait_for("the cause", lambda: gateway.endpoint(address)["causes"].get("reach"))
    assert WRONG[name] in str(cause)
    assert "upstream.tls" in str(cause) or name == "expired"


def test_a_key_that_the_engine_refuses_is_no_fault_of_the_client(gateway: Gateway, site: Site) -> None:
    """502 says whose fault it is, and the causes, by looks too; a new key in the file mends it by itself.

    Looks do not reach a replica of HTTP/2 alone: there requests find it.
    """
    static = gateway.mode == "static"
    gone = site.key.with_suffix(".next")
    gone.write_text(NEXT)
    gone.rename(site.key)
    if static:  # Envoy reads it at its start
        gateway.envoy.stop()
        gateway.envoy.start()
        wait_for("Envoy", gateway.ready)
    for stream in (False, True):
        _, headers, answer = wait_for(
            "the refusal",
            lambda stream=stream: (got := ask(gateway, "h2c", stream=stream))[0] == 502 and got,
        )
        assert answer["error"]["code"] == "engine_key_refused"
        assert "operator" in answer["error"]["message"]
        assert "www-authenticate" not in headers
    cause = wait_for("the cause", lambda: gateway.endpoint(site.fronts.address("h2c"))["causes"].get("key"))
    assert "upstream.key" in str(cause)
    looked = wait_for(
        "the look", lambda: gateway.endpoint(site.fronts.address("good"))["causes"].get("reach")
    )
    assert "upstream.key" in str(looked)
    assert gateway.tenant("acme")["failed"], "it counts as the fleet's failure"
    site.key.write_text(KEY)
    if static:
        gateway.envoy.stop()
        gateway.envoy.start()
        wait_for("Envoy", gateway.ready)
    wait_for("the old key", lambda: ask(gateway, "h2c")[0] == 200)
    wait_for("the others", lambda: ask(gateway, "good")[0] == 200)
    wait_for("no cause", lambda: "key" not in gateway.endpoint(site.fronts.address("h2c"))["causes"])


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


def test_the_key_is_shown_nowhere(gateway: Gateway, site: Site) -> None:
    """Not by Envoy's dumps, the service's answers, any log, the rendered file, `doctor` or the history."""
    wait_for("the pool", lambda: ask(gateway, "good")[0] == 200)
    envoy = f"http://127.0.0.1:{gateway.admin_port}"
    shown = {
        path: page(f"{envoy}{path}")
        for path in ("/config_dump?include_eds", "/clusters?format=json", "/stats", "/server_info", "/certs")
    }
    assert "key.good" in shown["/config_dump?include_eds"], "the secret itself is there"
    admin = f"http://{gateway.config['admin']['listen']}"
    for path in ("/", "/api/v1/status", "/api/v1/fleet", "/api/v1/decisions", "/metrics", "/api/v1/history"):
        try:
            shown[path] = page(f"{admin}{path}")
        except urllib.error.HTTPError as error:
            with error:
                shown[path] = error.read().decode()
    file = str(gateway.config_file)
    shown["status"] = json.dumps(gateway.status())
    shown["static"] = steersman("envoy-config", "-f", file)
    shown["ads"] = steersman("envoy-config", "-f", file, "--mode", "ads")
    shown["check"] = steersman("check", "-f", file)
    shown["doctor"] = run(sys.executable, "-m", "extproc.cli", "doctor", "-f", file, "--json").stdout
    for child in (gateway.service, gateway.envoy):
        shown[child.log.name] = child.log.read_text()
    for where, text in shown.items():
        assert text or where == "envoy.log", where
        assert KEY not in text, where
        assert NEXT not in text, where
    assert "TLS" in shown["doctor"], "it says what is wrong with the others"
    assert WRONG["expired"] in shown["doctor"]


def test_without_the_service_the_engine_is_reached_in_the_same_way(gateway: Gateway) -> None:
    """Where the gateway fails open: by TLS, with the path and the key, and without the client's."""
    wait_for("the pool", lambda: ask(gateway, "prefixed")[0] == 200)
    gateway.service.stop()
    try:
        status, headers, answer = wait_for(
            "an answer", lambda: (got := ask(gateway, "prefixed"))[0] == 200 and got
        )
        assert (status, headers["x-sni"]) == (200, NAME), answer
        assert (headers["x-path"], headers["x-key-seen"]) == (f"/openai{CHAT}", KEY)
        assert "x-steersman-pool" not in headers, "nobody decided"
    finally:
        gateway.start_service()
