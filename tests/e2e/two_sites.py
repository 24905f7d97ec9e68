"""Two sites for tests: an edge and a centre, each with its Envoy, its service, an engine; a way between."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateway import KEYS, Gateway, tenants, wait_for
from identity import Authority
from one_model import Engine
from otlp import Receiver
from slow_way import SlowWay
from tls_engine import TlsFronts

from extproc.core.remote.signing import SiteKey, read_keys, signing_key

#: Models: `small` at both sites, `big` in the centre alone.
SMALL, BIG, NOWHERE = "small", "big", "nowhere"
SIMPLE = "hello"
#: Requests that the centre takes at once. A second's requests are counted there until its next word.
PLACES = 12
#: Longer than the tests' bound on simple and complex prompts.
COMPLEX = "why " * 400
#: Who may say where clients are.
PROXY = "127.0.0.2"
PLACES_KNOWN = {
    "header": "x-client-country",
    "known": [
        {"name": "home", "values": ["HM"], "tier": "edge"},
        {"name": "abroad", "values": ["AB"], "tier": "centre"},
        {"name": "strict", "values": ["ST"], "regions": ["here"]},
    ],
}
TIERS = {"prompt_tokens_simple": 100, "prompt_tokens_complex": 200, "output_tokens_simple": 300}


class TwoSites:
    """Both gateways, the way between them, and an engine at each."""

    def __init__(
        self,
        edge: Gateway,
        centre: Gateway,
        way: SlowWay,
        near: Engine,
        far: Engine,
        folder: Path,
        receiver: Receiver,
    ) -> None:
        self.edge, self.centre, self.way, self.near, self.far = edge, centre, way, near, far
        self.folder, self.receiver = folder, receiver

    def show_logs(self) -> None:
        """Both gateways'."""
        self.edge.show_logs()
        self.centre.show_logs()

    @property
    def key(self) -> SiteKey:
        """The key that the edge signs with."""
        return signing_key(read_keys((self.folder / "shop.keys").read_text()))

    def keys(self, shop: str, hub: str) -> None:
        """What stands in each site's file of keys, and is read there."""
        reread = [each.status()["sites"]["reread"] for each in (self.edge, self.centre)]
        for name, text in (("shop.keys", shop), ("hub.keys", hub)):
            fresh = self.folder / f"{name}.new"
            fresh.write_text(text)
            fresh.replace(self.folder / name)
        for each, before in zip((self.edge, self.centre), reread, strict=True):
            wait_for("the keys", lambda each=each, before=before: each.status()["sites"]["reread"] > before)

    @property
    def link(self) -> dict[str, Any]:
        """What the edge knows of the centre."""
        link: dict[str, Any] = self.edge.status()["sites"]["links"]["hub"]
        return link

    def connected(self) -> None:
        """Wait until the edge has a fresh word of the centre, and requests would go there."""

        def well() -> bool:
            link = self.link
            return bool(link["fresh"]) and not link["away"] and not link["trouble"]

        wait_for("a word of the centre", well)
        hub = self.way.address
        wait_for("the centre's place", lambda: self.edge.endpoint(hub)["ready"])

    def clock(self, off_s: float) -> None:
        """How far the edge's clock is off."""
        new = self.folder / "clock.new"
        new.write_text(str(off_s))
        new.replace(self.folder / "clock")

    def ask(
        self, model: str = SMALL, text: str = SIMPLE, *, key: str = KEYS["acme"], **more: Any
    ) -> tuple[int, dict[str, str], Any]:
        """A chat at the edge."""
        headers = more.pop("headers", None)
        body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": text}], **more}
        return self.edge.call("/v1/chat/completions", body, key=key, headers=headers)

    def answered_by(self, *args: Any, **kwargs: Any) -> str:
        """Whose engine answered."""
        status, _, body = self.ask(*args, **kwargs)
        assert status == 200, body
        said: str = body["choices"][0]["message"]["content"]
        return said


@contextlib.contextmanager
def two_sites(
    *, delay_s: float = 0.005, mode: str = "ads", tls: bool = False, **sections: Any
) -> Iterator[TwoSites]:
    """Run them. With `tls` the way is one of TLS. `mode` and `sections` are the edge's, beside its own;
    `centre` holds those of the centre."""
    of_centre = sections.pop("centre", {})
    folder = Path(tempfile.mkdtemp(prefix="steersman-sites-"))
    (folder / "clock").write_text("0")
    first = f"first {secrets.token_hex(32)}\n"
    for name in ("shop", "hub"):
        (folder / f"{name}.keys").write_text(first)

    def peer(name: str, own: str) -> dict[str, Any]:
        return {"name": name, "forwards": True, "keys_file": str(folder / f"{own}.keys")}

    before = os.environ.get("STEERSMAN_TEST_CLOCK")
    os.environ["STEERSMAN_TEST_CLOCK"] = str(folder / "clock")
    try:
        with ExitStack() as stack:
            near = stack.enter_context(Engine("at the edge", adapters=[SMALL]))
            far = stack.enter_context(Engine("in the centre", adapters=[SMALL, BIG]))
            receiver = stack.enter_context(Receiver())
            traced = {"endpoint": receiver.grpc_url, "export_interval_ms": 50}
            place = {"address": far.address, "max_concurrent": PLACES}
            back = SlowWay("127.0.0.1:1")
            stack.enter_context(back)
            centre = Gateway(
                {
                    "main": {"models": [SMALL, BIG], "addresses": [place], "engine": "vllm"},
                    # Of a model that neither has: each says that the other does.
                    "shop": {
                        "models": [NOWHERE],
                        "addresses": [back.address],
                        "engine": "vllm",
                        "remote": {"site": "shop"},
                    },
                },
                site={
                    "name": "hub",
                    "tier": "centre",
                    "peers": [peer("shop", "hub")],
                    "places": {"known": [{"name": "abroad"}]},
                },
                otel=traced,
                **{"tenants": tenants(), **of_centre},
            )
            stack.enter_context(centre)
            entrance, upstream = f"127.0.0.1:{centre.port}", {}
            if tls:
                authority = Authority(folder)
                certificate, key = authority.issue("hub", "DNS:hub.test")
                front = {"certificate": certificate, "key": key}
                fronts = TlsFronts(folder, entrance, {"hub": front}, {})
                entrance = stack.enter_context(fronts).address("hub")
                trust = {"ca": str(authority.certificate), "server_name": "hub.test"}
                upstream = {"upstream": {"tls": trust}}
            way = stack.enter_context(SlowWay(entrance, delay_s=delay_s))
            edge = Gateway(
                {
                    "near": {
                        "models": [SMALL],
                        "addresses": [{"address": near.address, "region": "here"}],
                        "engine": "vllm",
                        "spill": {"to": "hub", "tiers": TIERS},
                    },
                    "hub": {
                        "models": [SMALL, BIG, NOWHERE],
                        "addresses": [way.address],
                        "engine": "vllm",
                        "strategy": "least_request",
                        **upstream,
                        "remote": {"site": "hub"},
                    },
                },
                site={"name": "shop", "tier": "edge", "peers": [peer("hub", "shop")], "places": PLACES_KNOWN},
                gateway={"client_address": {"networks": [f"{PROXY}/32"]}},
                otel=traced,
                mode=mode,
                service_script=Path(__file__).with_name("clocked_service.py"),
                **{"tenants": tenants(acme={"away_model": SMALL}), **sections},
            )
            stack.enter_context(edge)
            back.to = ("127.0.0.1", edge.port)
            sites = TwoSites(edge, centre, way, near, far, folder, receiver)
            sites.connected()
            yield sites
    finally:
        if before is None:
            del os.environ["STEERSMAN_TEST_CLOCK"]
        else:
            os.environ["STEERSMAN_TEST_CLOCK"] = before
        shutil.rmtree(folder)
