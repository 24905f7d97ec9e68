"""A place of our own that can be full, and a provider beside it, for the tests of spill-over."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from gateway import KEYS, Gateway, tenants, wait_for
from scripted_engine import WELL, Script, ScriptedEngine, SeenRequest

from extproc.core.tenant import hash_key


class GatedEngine(Protocol):
    """An engine that answers while `open` is set, and keeps what it has `seen`."""

    open: threading.Event

    @property
    def seen(self) -> Sequence[object]: ...


PROVIDER_KEY, OWN_KEY = "sk-of-the-operator-at-the-provider", "sk-of-our-own-engines"
PRICE = {"input_per_million": 100_000, "output_per_million": 200_000}

E = TypeVar("E", bound=GatedEngine)


class SpillSite(Generic[E]):
    """A gateway before one place of our own, and a provider."""

    def __init__(self, gateway: Gateway, own: E, paid: E) -> None:
        self.gateway, self.own, self.paid = gateway, own, paid

    def ask(self, *, key: str = KEYS["acme"], **more: Any) -> tuple[int, dict[str, str], Any]:
        """A chat."""
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "small", "max_tokens": 50, "messages": messages, **more}
        return self.gateway.call("/v1/chat/completions", body, key=key)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """The own place is taken by somebody's request, until the end of the block."""
        before = len(self.own.seen)
        self.own.open.clear()
        taking = threading.Thread(target=self.ask, kwargs={"key": KEYS["globex"]})
        taking.start()
        try:
            wait_for("a full pool", lambda: len(self.own.seen) > before)
            yield
        finally:
            self.own.open.set()
            taking.join()
            wait_for("quiet", self.gateway.quiet)

    def waits_at_home(self, ask: Callable[[], Any]) -> Any:
        """What a request is answered that is held in a full pool: its place is freed then."""
        found: list[Any] = []
        with self.full():
            waiting = threading.Thread(target=lambda: found.append(ask()))
            waiting.start()
            wait_for("a held request", lambda: self.gateway.status()["held"] == 1)
        waiting.join()
        return found[0]

    def spill(self) -> dict[str, Any]:
        """What the service says of spill-over."""
        found: dict[str, Any] = self.gateway.status()["spill"]
        return found


def chat(model: str, headers: dict[str, str] | None = None) -> Script:
    """A chat completion."""
    message = {"role": "assistant", "content": model}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    about = {"id": "x", "object": "chat.completion", "created": 0}
    return Script({**about, "model": model, "choices": choices, "usage": usage}, 200, headers or {})


def answer(request: SeenRequest) -> Script:
    """As it is asked: whole, or in events with usage; a look finds it well."""
    if request.method != "POST":
        return WELL
    model = request.json["model"]
    if not request.json.get("stream"):
        return chat(model)
    about: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": model}
    pieces = [
        {**about, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
        for word in ("a ", "b ", "c ")
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return Script(events=[("", each) for each in (*pieces, {**about, "choices": [], "usage": usage})])


def refusal(status: int, headers: dict[str, str] | None = None) -> Script:
    """What a provider says that does not serve."""
    return Script({"error": {"message": "not now"}}, status, headers or {})


@contextlib.contextmanager
def two_pools(
    folder: Path, mode: str, *, places: int = 64, **spill: Any
) -> Iterator[SpillSite[ScriptedEngine]]:
    """One of our own and a provider's with so many places, each reached in its own way;
    `spill` is said of spill-over besides."""
    for name, key in (("provider", PROVIDER_KEY), ("own", OWN_KEY)):
        (folder / name).write_text(key)
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(ScriptedEngine(answer))
        paid = stack.enter_context(ScriptedEngine(answer))
        pools: dict[str, dict[str, Any]] = {
            "little": {
                "models": ["small"],
                "addresses": [{"address": own.address, "max_concurrent": 1}],
                "engine": "vllm",
                "spill": {"to": "paid", "models": {"small": "gpt-large"}, "wait_ms": 100, **spill},
                "upstream": {
                    "key": {"file": str(folder / "own"), "header": "x-api-key"},
                    "path_prefix": "/engine",
                    "headers": {"add": {"x-rack": 'seven "7"'}},
                },
            },
            "paid": {
                "models": ["gpt-large"],
                "addresses": [{"address": paid.address, "max_concurrent": places}],
                "engine": "vllm",
                "price": PRICE,
                "upstream": {
                    "key": {"file": str(folder / "provider")},
                    "path_prefix": "/openai",
                    "headers": {"add": {"x-project": "ours"}},
                },
            },
        }
        people = tenants(acme={"spill": {}, "quota": {"requests_per_minute": 1_000}})
        people.append(
            {"name": "poor", "keys": [{"sha256": hash_key("sk-poor")}], "spill": {"budget_per_hour": 50}}
        )
        classes = [{"name": "standard", "hold_ms": 20_000}]
        gateway = Gateway(pools, tenants=people, classes=classes, mode=mode)
        yield SpillSite(stack.enter_context(gateway), own, paid)


def posts(engine: ScriptedEngine) -> list[SeenRequest]:
    """What was sent to an engine but for looks."""
    return [each for each in engine.seen if each.method == "POST"]


def body_at(request: SeenRequest) -> Any:
    """What a body says, whose length is the one that is declared."""
    assert int(request.headers["content-length"]) == len(request.body)
    return request.json
