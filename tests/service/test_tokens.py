"""The part that counts prompts: from files and from engines, within its time, and what it says of itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from extproc.config.load import loads
from extproc.core.decide import resolve
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.outcome import Reject
from extproc.core.request import Request
from extproc.core.tenant import ANONYMOUS
from extproc.engines import ENGINES
from extproc.service.build import pool_specs
from extproc.service.tokens import TokensPart
from extproc.tokens.asked import answered, believed, question
from extproc.upstream import PLAIN, ReplicaAccess
from tests.stand.vocabulary import asked, prose, written
from tests.stand.web_server import listening

S = 1_000_000_000


def text_of(tokenizer: str, *, address: str = "127.0.0.1:9", engine: str = "vllm", more: str = "") -> str:
    return f"""
gateway: {{auth: none}}
pools:
  - name: p
    models: [m]
    engine: {engine}
    endpoints: [{{address: "{address}"}}]
    {tokenizer}
    {more}
"""


class Counting:
    """A fleet whose pool counts, beside a test's event loop."""

    def __init__(self, text: str, access: ReplicaAccess = PLAIN) -> None:
        self.config = loads(text)
        self.fleet = Fleet(pool_specs(self.config))
        self.part = TokensPart(self.config, self.fleet, way=lambda _: (access, ""))

    @property
    def pool(self) -> dict[str, Any]:
        found = self.part.status()["p"]
        assert isinstance(found, dict)
        return found

    def tokens(self, request: Request) -> int:
        found = resolve(
            request,
            ANONYMOUS,
            self.fleet,
            Ledger(ttl_ns=S, remembered_max=10),
            id="i",
            default_model="m",
            reservations_max=10,
        )
        assert not isinstance(found, Reject)
        return found.input_tokens

    def reload(self, text: str) -> None:
        self.config = loads(text)
        self.fleet.apply(pool_specs(self.config))
        self.part.apply(self.config)


@asynccontextmanager
async def running(counting: Counting) -> Any:
    for endpoint in counting.fleet.endpoints:
        endpoint.refresh()
    await counting.part.start()
    try:
        yield counting
    finally:
        await counting.part.stop()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 (threads and a server set no event of ours)
            await asyncio.sleep(0.005)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scene())  # type: ignore[arg-type]


def test_prompts_are_counted_with_the_file(tmp_path: Path) -> None:
    """What was asked before is reserved at its count, and no more at the bytes' estimate."""
    path = written(tmp_path)
    request = asked(("system", prose()[:5_000]), ("user", "What is this?"))

    async def scene() -> None:
        counting = Counting(text_of(f"tokenizer: {{path: {path}}}"))
        estimate = counting.tokens(request)
        async with running(counting):
            await until(lambda: not counting.pool["problem"])
            assert counting.tokens(request) == estimate
            await until(lambda: counting.tokens(request) != estimate)
            # What waits no more may still be in a thread.
            await until(lambda: counting.tokens(request) and counting.pool["prompts"].get("exact"))
            seen = counting.part.seen()
            assert seen.usable == {"p": True}
            assert seen.prompts["p", "exact"] >= 1

    play(scene)


def test_a_missing_file_is_said_and_taken_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its file a pool is estimated and says so, until the file is there."""
    monkeypatch.setattr("extproc.service.tokens.LOOK_S", 0.01)
    path = tmp_path / "llama3-2000.json"

    async def scene() -> None:
        counting = Counting(text_of(f"tokenizer: {{path: {path}}}"))
        async with running(counting):
            await until(lambda: "cannot be read" in counting.pool["problem"])
            assert str(path) in caplog.text
            assert counting.part.seen().usable == {"p": False}
            written(tmp_path)
            await until(lambda: not counting.pool["problem"])

    play(scene)


def test_a_reload_takes_another_tokenizer_or_none(tmp_path: Path) -> None:
    """Another file counts anew, the same one keeps its counts, and without the setting nothing is counted."""
    one, other = written(tmp_path), written(tmp_path, "gpt2")
    request = asked(("user", "What is this?"))

    async def scene() -> None:
        counting = Counting(text_of(f"tokenizer: {{path: {one}}}"))
        async with running(counting):
            await until(lambda: not counting.pool["problem"])
            counting.tokens(request)
            await until(lambda: counting.pool["known"])
            counting.reload(text_of(f"tokenizer: {{path: {one}, inline_bytes: 100}}"))
            assert counting.pool["known"] == 1
            counting.reload(text_of(f"tokenizer: {{path: {other}}}"))
            assert counting.pool["known"] == 0
            await until(lambda: not counting.pool["problem"])
            counting.reload(text_of(""))
            assert counting.part.status() == {}
            assert counting.part.observers == ()
            assert counting.fleet.pools["p"].calibration.counter is None

    play(scene)


class Engine:
    """A stand-in for an engine's /tokenize: words, and one token in front where it is told nothing else."""

    def __init__(self, engine: str) -> None:
        self.field, self.engine = ENGINES[engine].tokenize_field, engine
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.status = 200
        #: The answer comes in two pieces, the second a while later.
        self.pieces = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        whole = await self._whole(request)
        if not self.pieces:
            return whole
        body = whole.body
        assert isinstance(body, bytes)
        answer = web.StreamResponse(status=whole.status)
        await answer.prepare(request)
        await answer.write(body[:9])
        await asyncio.sleep(0.02)
        await answer.write(body[9:])
        return answer

    async def _whole(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(request.headers.get("authorization"))
        words = body[self.field].split()
        if self.status != 200:
            return web.json_response({"error": "no"}, status=self.status)
        if self.field == "inputs":
            return web.json_response([{"id": 1, "text": each} for each in ["<s>", *words]])
        if self.field == "content":
            return web.json_response({"tokens": list(range(len(words)))})
        return web.json_response({"count": len(words), "tokens": list(range(len(words)))})


def tokenizing(engine: Engine) -> AbstractAsyncContextManager[str]:
    """Its address, while it listens."""
    app = web.Application()
    app.add_routes([web.post(path, engine.answer) for path in ("/tokenize", "/openai/tokenize")])
    return listening(app)


@pytest.mark.parametrize("engine", ["tgi", "vllm", "sglang", "llamacpp"])
def test_an_engine_counts_in_its_own_words(engine: str) -> None:
    """TGI's, vLLM's, SGLang's and llama.cpp's /tokenize are asked once a text, with the engine's key."""
    request = asked(("user", "one two three four five"))

    async def scene() -> None:
        there = Engine(engine)
        async with tokenizing(there) as address:
            text = text_of("tokenizer: {source: engine, cpu_share: 1}", address=address, engine=engine)
            counting = Counting(text, ReplicaAccess(headers={"authorization": "Bearer secret"}))
            async with running(counting):
                await until(lambda: not counting.pool["problem"])
                estimate = counting.tokens(request)
                await until(lambda: counting.pool["known"])
                before = len(there.asked)
                for _ in range(3):
                    assert counting.tokens(request) != estimate
                await asyncio.sleep(0)
                assert len(there.asked) == before
                assert set(there.headers) == {"Bearer secret"}
                assert all(there.field in each for each in there.asked)

    play(scene)


def test_an_answer_may_come_in_pieces() -> None:
    """That of a long text does."""

    async def scene() -> None:
        there = Engine("vllm")
        there.pieces = True
        async with tokenizing(there) as address:
            counting = Counting(text_of("tokenizer: {source: engine, cpu_share: 1}", address=address))
            async with running(counting):
                await until(lambda: not counting.pool["problem"])
                counting.tokens(asked(("user", "one two three four five")))
                await until(lambda: counting.pool["known"])

    play(scene)


def test_an_engine_that_cannot_count_is_said_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without /tokenize leaves the estimate, and the diagnosis names what it answered."""
    monkeypatch.setattr("extproc.service.tokens.LOOK_S", 0.01)

    async def scene() -> None:
        there = Engine("vllm")
        there.status = 404
        async with tokenizing(there) as address:
            counting = Counting(text_of("tokenizer: {source: engine, cpu_share: 1}", address=address))
            async with running(counting):
                await until(lambda: "answers 404" in counting.pool["problem"])
                there.status = 200
                await until(lambda: not counting.pool["problem"])

    play(scene)


def test_an_engine_that_hangs_keeps_no_other_pool_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each counts by itself: one's engine takes a question and never answers, the other's file counts on."""
    monkeypatch.setattr("extproc.service.tokens.ASK_TIMEOUT_S", 3_600.0)

    async def scene() -> None:
        asked_it = asyncio.Event()

        async def hang(_: web.Request) -> web.Response:
            asked_it.set()
            await asyncio.sleep(3_600)
            raise AssertionError

        app = web.Application()
        app.add_routes([web.post("/tokenize", hang)])
        async with listening(app) as address:
            hangs = f'''
  - name: a
    models: [other]
    tokenizer: {{source: engine}}
    endpoints: [{{address: "{address}"}}]
'''
            text = text_of(f"tokenizer: {{path: {written(tmp_path)}, cpu_share: 1}}")
            counting = Counting(text.replace("pools:\n", "pools:" + hangs, 1))
            async with running(counting):
                await asked_it.wait()
                await until(lambda: not counting.pool["problem"])
                counting.tokens(asked(("user", prose()[:20_000])))
                await until(lambda: counting.pool["known"] >= 15 and not counting.pool["waiting"])

    play(scene)


@pytest.mark.parametrize("lie", [-5, 0, 10**6, 10**30])
def test_a_number_that_no_text_has_is_no_count(lie: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that lies reserves nobody's quota: the estimate stays, and what it said is told."""
    monkeypatch.setattr("extproc.service.tokens.LOOK_S", 0.01)

    async def scene() -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=json.dumps({"count": lie}), content_type="application/json")

        app = web.Application()
        app.add_routes([web.post("/tokenize", answer)])
        async with listening(app) as address:
            counting = Counting(text_of("tokenizer: {source: engine, cpu_share: 1}", address=address))
            async with running(counting):
                await until(lambda: "tokens for a text of" in counting.pool["problem"])

    play(scene)


def test_what_a_text_may_have_is_believed() -> None:
    """A token a byte, what normalising makes of a ligature, nothing for a blank."""
    for count, text in [(0, ""), (0, " "), (1, "a"), (17, "a"), (33, "\ufdfa")]:
        assert believed(count, text) == count


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"[]"),
        (200, b"{"),
        (200, b"{}"),
        (200, b'{"tokens": 3}'),
        (200, b'"x"'),
        (200, b'{"count": true}'),
    ],
)
def test_an_answer_without_tokens_is_no_count(status: int, body: bytes) -> None:
    """What an engine sends that holds no tokens is said, and never taken for none."""
    with pytest.raises(ValueError, match="answers"):
        answered(status, body)


def test_a_question_is_well_formed_whatever_the_text() -> None:
    """Half a surrogate pair and quotes go as JSON; an engine that is strict is told the model."""
    body = json.loads(question('"\ud800', ENGINES["vllm"], "m"))
    assert body == {"prompt": '"?', "add_special_tokens": False, "model": "m"}
    assert "model" not in json.loads(question("a", ENGINES["tgi"], "m"))


def test_what_does_not_fit_the_context_is_refused_exactly(tmp_path: Path) -> None:
    """Once counts are known to be right, a prompt above the context gets 400; one below it goes on."""
    path = written(tmp_path)

    async def scene() -> None:
        text = text_of(f"tokenizer: {{path: {path}, inline_bytes: 4096, context_tokens: 1000}}")
        counting = Counting(text)
        async with running(counting):
            await until(lambda: not counting.pool["problem"])
            counter = counting.part._sources["p"].counter
            tokenizer = counting.part._sources["p"].tokenizer
            assert tokenizer is not None
            long = asked(("user", prose()[:3_500]), max_tokens=16)
            # Nobody has confirmed the counts yet: the engine decides.
            assert counting.tokens(long) > 1_000
            for number in range(20):
                request = asked(("user", prose()[number * 100 : number * 150 + 400]))
                counted = counter.count(request, 1, 4.0)
                assert counted is not None
                counter.ended(counted, tokenizer.counts(request.segments)[0] + 7)
            refused = resolve(
                long,
                ANONYMOUS,
                counting.fleet,
                Ledger(ttl_ns=S, remembered_max=10),
                id="i",
                default_model="m",
                reservations_max=10,
            )
            assert isinstance(refused, Reject)
            assert (refused.status, refused.code) == (400, "context_length_exceeded")
            assert "1000" in refused.message
            assert counting.tokens(asked(("user", prose()[:1_500]), max_tokens=16)) < 900

    play(scene)


def test_check_names_the_file(tmp_path: Path) -> None:
    """`steersman check` names a tokenizer's file that is missing or damaged."""
    from extproc.cli.check import command

    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    for tokenizer, words in (
        (f"tokenizer: {{path: {tmp_path}/none.json}}", f"{tmp_path}/none.json: cannot be read"),
        (f"tokenizer: {{path: {damaged}}}", f"{damaged}: is no tokenizer.json"),
        (f"tokenizer: {{path: {written(tmp_path)}}}", ""),
    ):
        file = tmp_path / "steersman.yaml"
        file.write_text(text_of(tokenizer))
        result = CliRunner().invoke(command, ["-f", str(file)])
        assert result.exit_code == 0, result.output
        if words:
            assert words in result.output
        else:
            assert "warning" not in result.output


def test_a_tokenizer_is_a_file_or_the_engine() -> None:
    """Neither and both are mistakes."""
    for tokenizer in ("tokenizer: {}", "tokenizer: {path: a.json, source: engine}"):
        with pytest.raises(Exception, match="name one of the two"):
            loads(text_of(tokenizer))
