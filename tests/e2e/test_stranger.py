"""An address in the decision's list that shows another's certificate: it gets no prompt and no key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from gateway import KEYS, Gateway, wait_for
from identity import Authority
from listening_engine import ListeningEngine
from shaped_engine import ShapedEngine
from tls_engine import TlsFronts

pytestmark = pytest.mark.envoy

CHAT = "/v1/chat/completions"
KEY, NAME, PROMPT = "sk-of-the-engine-27182", "llm.test", "the prompt of nobody else"
#: What is wrong with the stranger's certificate, and how its cause tells that.
STRANGERS = {"misnamed": "its certificate has another name", "unsigned": "upstream.tls.ca does not hold"}


class Place:
    """A pool of each kind: a stranger and a replica that is right, in one list."""

    def __init__(self, gateway: Gateway, strangers: dict[str, ListeningEngine], *, looks: bool) -> None:
        self.gateway, self.strangers, self.looks = gateway, strangers, looks

    def ask(self, model: str, **more: Any) -> tuple[int, dict[str, str], Any]:
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}
        return self.gateway.call(CHAT, body, headers={"x-tokens": "3", "x-api-key": KEYS["acme"]})


@pytest.fixture(scope="module", params=[("static", False), ("ads", False), ("ads", True)], ids=str)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("site")
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    good = dict(zip(("certificate", "key"), ours.issue("good", f"DNS:{NAME}"), strict=True))
    shown = {
        "misnamed": ours.issue("other", "DNS:other.test"),
        "unsigned": theirs.issue("good", f"DNS:{NAME}"),
    }
    key = folder / "engine-key"
    key.write_text(KEY)
    upstream = {"tls": {"ca": str(ours.certificate), "server_name": NAME}, "key": {"file": str(key)}}
    with ExitStack() as stack:
        engine = stack.enter_context(ShapedEngine())
        fronts = dict.fromkeys(STRANGERS, good)
        asks = dict.fromkeys(fronts, f"authorization: Bearer {KEY}")
        site = stack.enter_context(TlsFronts(folder, engine.addresses[0], fronts, asks))
        strangers = {name: stack.enter_context(ListeningEngine(*pair)) for name, pair in shown.items()}
        pools = {
            name: {
                "models": [name],
                "engine": "vllm",
                "strategy": "round_robin",
                "upstream": {**upstream, "http2": "auto" if name == "misnamed" else False},
                "addresses": [stranger.address, site.address(name)],
            }
            for name, stranger in strangers.items()
        }
        mode, looks = request.param
        gateway = Gateway(pools, mode=mode, probes={"enabled": looks, "interval_s": 0.5})
        yield Place(stack.enter_context(gateway), strangers, looks=looks)


@pytest.mark.parametrize("name", STRANGERS)
def test_it_hears_nothing_and_the_next_one_serves(place: Place, name: str) -> None:
    """Whole and streamed, whoever is first in the list. By the service's looks the endpoint's causes say what
    is wrong; without them requests find that it fails."""
    stranger = place.strangers[name]
    wait_for("the pool", lambda: place.ask(name)[0] == 200, timeout_s=30)
    for i in range(10):
        status, headers, answer = place.ask(name, stream=bool(i % 2))
        assert (status, headers.get("x-sni")) == (200, NAME), answer
    assert stranger.tried, "it was in some list"
    assert stranger.heard == b""
    said = STRANGERS[name] if place.looks else "of answers failed"
    wait_for("its cause", lambda: said in str(place.gateway.endpoint(stranger.address)["causes"]))
