"""The decision's list is a bound over TLS too: whom it leaves out is not asked, whatever fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from gateway import KEYS, Gateway, free_ports, tenants, wait_for
from identity import Authority
from shaped_engine import ShapedEngine
from tls_engine import TlsFronts

pytestmark = pytest.mark.envoy

NAME = "llm.test"


class Bounded:
    """A gateway before replicas behind TLS, in two regions, of which acme may use one."""

    def __init__(self, gateway: Gateway, engine: ShapedEngine) -> None:
        self.gateway, self.engine = gateway, engine

    def ask(self, model: str, tenant: str) -> tuple[int, int]:
        """The status of a chat, and how many requests it was to the engine behind all fronts."""
        before = self.engine.requests
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
        status, _, _ = self.gateway.call("/v1/chat/completions", body, key=KEYS[tenant])
        wait_for("its record", self.gateway.quiet)
        return status, self.engine.requests - before


@pytest.fixture(scope="module", params=["static", "ads"])
def bounded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bounded]:
    folder = tmp_path_factory.mktemp("bounded")
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    good = dict(zip(("certificate", "key"), ours.issue("good", f"DNS:{NAME}"), strict=True))
    forged = dict(zip(("certificate", "key"), theirs.issue("good", f"DNS:{NAME}"), strict=True))
    with ExitStack() as stack:
        engine = stack.enter_context(ShapedEngine())
        named = {"eu": good, "us": good, "lost us": good, "forged eu": forged, "forged us": good}
        fronts = stack.enter_context(TlsFronts(folder, engine.addresses[0], named, {}))
        upstream = {"tls": {"ca": str(ours.certificate), "server_name": NAME}}

        def pool(model: str, eu: str, us: str) -> dict[str, object]:
            listed = [{"address": eu, "region": "eu"}, {"address": us, "region": "us"}]
            return {"models": [model], "engine": "vllm", "addresses": listed, "upstream": upstream}

        dead = f"127.0.0.1:{free_ports(1)[0]}"
        pools = {
            "well": pool("well", fronts.address("eu"), fronts.address("us")),
            "lost": pool("lost", dead, fronts.address("lost us")),
            "forged": pool("forged", fronts.address("forged eu"), fronts.address("forged us")),
        }
        people = tenants(acme={"regions": ["eu"]})
        gateway = Gateway(pools, mode=request.param, tenants=people, probes={"enabled": False})
        yield Bounded(stack.enter_context(gateway), engine)


@pytest.mark.parametrize("model", ["lost", "forged"])
def test_who_is_not_on_the_list_is_not_asked(bounded: Bounded, model: str) -> None:
    """Whose only replica is gone, or shows another's certificate, gets 503; no other replica hears of it,
    though it would serve, as it does for whoever may use it."""
    assert bounded.ask("well", "acme") == (200, 1)
    assert bounded.ask(model, "acme") == (503, 0)
    assert bounded.ask(model, "globex") == (200, 1)
    assert bounded.ask(model, "acme") == (503, 0)
