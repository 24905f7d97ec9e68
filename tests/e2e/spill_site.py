"""A place of our own that can be full, and a provider beside it, for the tests of spill-over."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from gateway import KEYS, Gateway, wait_for


class GatedEngine(Protocol):
    """An engine that answers while `open` is set, and keeps what it has `seen`."""

    open: threading.Event

    @property
    def seen(self) -> Sequence[object]: ...


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
