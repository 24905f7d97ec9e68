"""Replicas by host name, through the real Envoy: looked up, asked for and verified by that name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, wait_for
from identity import Authority
from shaped_engine import ShapedEngine
from tls_engine import TlsFronts

pytestmark = pytest.mark.envoy
#: By conftest.py: the last test takes the resolver away.
IN_ORDER = True

CHAT = "/v1/chat/completions"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("names") / "names"
    file.write_text("a.test b.test gone.test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERSMAN_TEST_NAMES", str(file))
        yield file


@pytest.fixture(scope="module")
def gateway(names: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("site")
    ours = Authority(folder, "ours")
    fronts = {
        name: dict(zip(("certificate", "key"), ours.issue(name, f"DNS:{name}.test"), strict=True))
        for name in ("a", "b", "gone")
    }
    fronts |= {"right": fronts["a"], "plain": {}}
    with ShapedEngine() as engine, TlsFronts(folder, engine.addresses[0], fronts, {}) as site:
        tls = {"upstream": {"tls": {"ca": str(ours.certificate)}, "http2": "auto"}, "engine": "vllm"}
        soon = [{"name": "gone.test", "port": site.port["gone"], "interval_s": 1, "gone_after_s": 1}]
        pools: dict[str, dict[str, Any]] = {
            "named": {**tls, "addresses": [f"B.test:{site.port['b']}"]},
            # The name leads to a replica whose certificate has another one, beside one that is right.
            "mixed": {**tls, "addresses": [f"b.test:{site.port['a']}", f"a.test:{site.port['right']}"]},
            "plain": {"engine": "vllm", "addresses": [f"b.test:{site.port['plain']}"]},
            "gone": {**tls, "addresses": [], "discovery": {"dns": soon}},
        }
        for name, pool in pools.items():
            pool["models"] = [name]
        with Gateway(
            pools, mode="ads", service_script=HERE / "named_service.py", probes={"enabled": False}
        ) as gateway:
            yield gateway


def ask(gateway: Gateway, model: str, **more: Any) -> tuple[int, dict[str, str], Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], **more}
    return gateway.call(CHAT, body, headers={"x-tokens": "3"})


def test_each_is_asked_for_by_its_own_name(gateway: Gateway) -> None:
    """In TLS's SNI and in Host, and verified by it; without TLS in Host alone."""
    for model, name in (("named", "b.test"), ("gone", "gone.test"), ("plain", "b.test")):
        wait_for(model, lambda model=model: ask(gateway, model)[0] == 200, timeout_s=30)
        for stream in (False, True):
            status, headers, _ = ask(gateway, model, stream=stream)
            assert (status, headers["x-host"]) == (200, name)
            assert headers.get("x-sni", "-") == ("-" if model == "plain" else name)
            assert headers["x-version"] == ("HTTP/1.1" if model == "plain" else "HTTP/2")


def test_another_name_is_never_believed_and_the_next_replica_serves(gateway: Gateway) -> None:
    """A retry goes to the list's next one, which is asked for by its own name."""
    wait_for("the pool", lambda: ask(gateway, "mixed")[0] == 200, timeout_s=30)
    for i in range(8):
        status, headers, answer = ask(gateway, "mixed", stream=bool(i % 2))
        assert (status, headers.get("x-sni")) == (200, "a.test"), answer


def test_a_name_leaves_after_its_bound_and_stays_while_the_resolver_fails(
    gateway: Gateway, names: Path
) -> None:
    """ "No such name" is an answer; a resolver that fails says nothing of any name."""
    names.unlink()
    time.sleep(3.0)  # thrice the interval, and more than the bound
    assert ask(gateway, "gone")[0] == 200, "the resolver fails"
    names.write_text("a.test b.test")
    wait_for("the name's end", lambda: not [e for e in gateway.status()["endpoints"] if e["pool"] == "gone"])
    assert ask(gateway, "gone")[0] == 503
    assert ask(gateway, "named")[0] == 200
    names.write_text("a.test b.test gone.test")
    wait_for("the name again", lambda: ask(gateway, "gone")[0] == 200)
