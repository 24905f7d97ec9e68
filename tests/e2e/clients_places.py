"""Where the tests of official clients point them: an engine that plays a script, and a gateway before it."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import anthropic
import openai
import pytest
import text_generation
from gateway import KEYS, Gateway
from huggingface_hub import InferenceClient
from pydantic import BaseModel
from scripted_engine import ScriptedEngine

MODEL = "tiny-chat"
KEY = KEYS["acme"]
SAY: Any = [{"role": "user", "content": "Which course?"}]


class Place(NamedTuple):
    """Where clients are pointed: an engine, or a gateway before it."""

    url: str
    key: str = KEY

    @contextlib.contextmanager
    def openai(self, **more: Any) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": self.key, "max_retries": 0, "timeout": 60, **more}
        ) as client:
            yield client

    @contextlib.contextmanager
    def anthropic(self, **more: Any) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(
            **{"base_url": self.url, "api_key": self.key, "max_retries": 0, "timeout": 60, **more}
        ) as client:
            yield client

    def hub(self, base: str = "") -> InferenceClient:
        return InferenceClient(base_url=f"{self.url}{base}", token=self.key)

    def tgi(self) -> text_generation.Client:
        return text_generation.Client(self.url, headers={"authorization": f"Bearer {self.key}"})


class Both(NamedTuple):
    """The engine itself, and the gateway before it."""

    engine: ScriptedEngine
    gateway: Gateway

    @property
    def direct(self) -> Place:
        return Place(f"http://{self.engine.address}")

    @property
    def through(self) -> Place:
        return Place(self.gateway.url)


@pytest.fixture(autouse=True)
def others_sockets() -> Iterator[None]:
    """Libraries leave connections to the collector, which would tell of them in whatever test it runs."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def plain(found: Any) -> Any:
    """An object of a client's as values that compare."""
    if isinstance(found, BaseModel):
        return type(found).__name__, found.model_dump()
    if isinstance(found, list | tuple):
        return [plain(each) for each in found]
    return found
