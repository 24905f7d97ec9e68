"""The clients that users have, each way in which they call a gateway, timed at the client.

Owns openai, huggingface_hub and text-generation, in their asyncio variants (one loop costs less CPU
than a pool of threads). Imported late: the three take two seconds.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import huggingface_hub
import openai
import text_generation  # type: ignore[import-untyped]  # ships none

from extproc.core.contract import MODEL_HEADER

CALL_S_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class Way:
    """A client, the route that it calls, and whether it streams."""

    client: str
    route: str
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. `output_tokens` is what the prompt's marker forces, so what must come back."""

    tenant: str
    way: Way
    model: str
    prompt: str
    output_tokens: int


@dataclass(slots=True)
class ClientSample:
    """What a client saw: seconds to its first token (streams only) and tokens."""

    ttft_s: float | None = None
    tokens: int = 0


class CutShortError(Exception):
    """An answer that ended without an error and without all its tokens."""


class TenantClients:
    """One tenant's clients. `await close()` at the end."""

    def __init__(self, url: str, *, key: str, models: list[str]) -> None:
        self._url = url
        headers = {"Authorization": f"Bearer {key}"}
        # A loopback address is never behind a proxy, whatever the environment says.
        self._openai = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key=key,
            max_retries=0,
            timeout=CALL_S_MAX,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )
        # TGI's own bodies have no field for a model: there a header names it.
        self._hub = {
            model: huggingface_hub.AsyncInferenceClient(
                base_url=url, api_key=key, timeout=CALL_S_MAX, headers={MODEL_HEADER: model}
            )
            for model in models
        }
        self._tgi = {
            (model, route): text_generation.AsyncClient(
                url + route, headers={**headers, MODEL_HEADER: model}, timeout=CALL_S_MAX
            )
            for model in models
            for route in ("/", "/generate_stream")
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()
        for client in self._hub.values():
            await client.close()  # type: ignore[no-untyped-call]  # its decorator hides the type

    async def send(self, call: Call, seen: ClientSample) -> None:
        """Send and read to the end; `seen` fills as it goes. Raises whatever the client raises."""
        began_s = time.perf_counter()
        answer = WAYS[call.way](self, call)
        if call.way.stream:
            async for tokens in answer:
                if tokens and seen.ttft_s is None:
                    seen.ttft_s = time.perf_counter() - began_s
                seen.tokens += tokens
        else:
            seen.tokens = await answer
        if seen.tokens != call.output_tokens:
            raise CutShortError(f"{seen.tokens} tokens of {call.output_tokens} came")

    async def _openai_chat_stream(self, call: Call) -> AsyncIterator[int]:
        async for chunk in await self._openai.chat.completions.create(
            model=call.model, messages=_messages(call), max_tokens=call.output_tokens, stream=True
        ):
            yield sum(bool(choice.delta.content) for choice in chunk.choices)

    async def _openai_chat(self, call: Call) -> int:
        answer = await self._openai.chat.completions.create(
            model=call.model, messages=_messages(call), max_tokens=call.output_tokens
        )
        return answer.usage.completion_tokens if answer.usage else 0

    async def _openai_completion_stream(self, call: Call) -> AsyncIterator[int]:
        async for chunk in await self._openai.completions.create(
            model=call.model, prompt=call.prompt, max_tokens=call.output_tokens, stream=True
        ):
            yield sum(bool(choice.text) for choice in chunk.choices)

    async def _openai_completion(self, call: Call) -> int:
        answer = await self._openai.completions.create(
            model=call.model, prompt=call.prompt, max_tokens=call.output_tokens
        )
        return answer.usage.completion_tokens if answer.usage else 0

    async def _hub_chat_stream(self, call: Call) -> AsyncIterator[int]:
        async for chunk in await self._hub[call.model].chat_completion(
            _messages(call), model=call.model, max_tokens=call.output_tokens, stream=True
        ):
            yield sum(bool(choice.delta.content) for choice in chunk.choices)

    async def _hub_chat(self, call: Call) -> int:
        answer = await self._hub[call.model].chat_completion(
            _messages(call), model=call.model, max_tokens=call.output_tokens
        )
        return int(answer.usage.completion_tokens)

    async def _hub_generate_stream(self, call: Call) -> AsyncIterator[int]:
        async for event in await self._hub[call.model].text_generation(
            call.prompt, max_new_tokens=call.output_tokens, stream=True, details=True
        ):
            yield int(bool(event.token.text))

    async def _hub_generate(self, call: Call) -> int:
        answer = await self._hub[call.model].text_generation(
            call.prompt, model=f"{self._url}/generate", max_new_tokens=call.output_tokens, details=True
        )
        return int(answer.details.generated_tokens) if answer.details else 0

    async def _tgi_stream(self, call: Call) -> AsyncIterator[int]:
        async for event in self._tgi[call.model, call.way.route].generate_stream(
            call.prompt, max_new_tokens=call.output_tokens
        ):
            yield int(bool(event.token.text))

    async def _tgi_whole(self, call: Call) -> int:
        client = self._tgi[call.model, call.way.route]
        answer = await client.generate(call.prompt, max_new_tokens=call.output_tokens)
        return int(answer.details.generated_tokens) if answer.details else 0


def _messages(call: Call) -> list[Any]:
    return [{"role": "user", "content": call.prompt}]


#: Every way in which the demo calls, by client, route and form of the answer.
WAYS: Final[dict[Way, Callable[[TenantClients, Call], Any]]] = {
    Way("openai", "/v1/chat/completions", True): TenantClients._openai_chat_stream,  # noqa: SLF001 (its own table)
    Way("openai", "/v1/chat/completions", False): TenantClients._openai_chat,  # noqa: SLF001
    Way("openai", "/v1/completions", True): TenantClients._openai_completion_stream,  # noqa: SLF001
    Way("openai", "/v1/completions", False): TenantClients._openai_completion,  # noqa: SLF001
    Way("huggingface_hub", "/v1/chat/completions", True): TenantClients._hub_chat_stream,  # noqa: SLF001
    Way("huggingface_hub", "/v1/chat/completions", False): TenantClients._hub_chat,  # noqa: SLF001
    Way("huggingface_hub", "/", True): TenantClients._hub_generate_stream,  # noqa: SLF001
    Way("huggingface_hub", "/generate", False): TenantClients._hub_generate,  # noqa: SLF001
    Way("text-generation", "/generate_stream", True): TenantClients._tgi_stream,  # noqa: SLF001
    Way("text-generation", "/", True): TenantClients._tgi_stream,  # noqa: SLF001
    Way("text-generation", "/", False): TenantClients._tgi_whole,  # noqa: SLF001
}

Send = Callable[[Call, ClientSample], Awaitable[None]]
