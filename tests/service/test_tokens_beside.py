"""What goes wrong with whoever counts beside the service: an engine that hangs or lies, a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from aiohttp import web

from extproc.tokens.asked import believed
from extproc.tokens.process import TokenizerProcess
from extproc.tokens.tokenizer import FileTokenizer, load
from tests.stand.counting import Counting, play, running, text_of, until
from tests.stand.vocabulary import asked, prose, written
from tests.stand.web_server import listening


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


def test_a_file_is_read_and_its_texts_counted_beside_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading takes the interpreter's lock: a process of its own does it, and is begun again where it ends.

    With inline_bytes a text is counted on the decision's way, and so the file is read here.
    """
    read: list[Path] = []

    def here(path: Path) -> FileTokenizer:
        read.append(path)
        return load(path)

    monkeypatch.setattr("extproc.service.tokens.load", here)
    monkeypatch.setattr("extproc.service.tokens.LOOK_S", 0.05)

    async def scene() -> None:
        tokenizer = f"tokenizer: {{path: {written(tmp_path)}, cpu_share: 1%s}}"
        counting = Counting(text_of(tokenizer % ""))
        async with running(counting):
            await until(lambda: not counting.pool["problem"])
            source = counting.part._sources["p"]
            first = source.tokenizer
            assert isinstance(first, TokenizerProcess)
            counting.tokens(asked(("user", "one two")))
            await until(lambda: counting.pool["known"] == 1)
            assert not read
            os.kill(first.pid, signal.SIGKILL)
            counting.tokens(asked(("user", "three four")))
            await until(lambda: source.tokenizer not in (first, None) and not counting.pool["problem"])
            counting.tokens(asked(("user", "five six")))
            await until(lambda: counting.pool["known"] == 1)
            second = source.tokenizer
            assert isinstance(second, TokenizerProcess)
            assert not read
            counting.reload(text_of(tokenizer % ", inline_bytes: 100"))
            await until(lambda: isinstance(source.tokenizer, FileTokenizer))
            assert len(read) == 1
            for each in (first, second):
                with pytest.raises(ProcessLookupError):
                    os.kill(each.pid, 0)

    play(scene)


async def begun(counting: Counting) -> None:
    """Its tokenizer is there."""
    await until(lambda: not counting.pool["problem"])


def test_a_process_that_counts_ends_with_the_service(tmp_path: Path) -> None:
    """A reload without a tokenizer and a stop leave none behind."""

    async def scene() -> None:
        text = text_of(f"tokenizer: {{path: {written(tmp_path)}, cpu_share: 1}}")
        for reload in (True, False):
            async with running(Counting(text)) as counting:
                await begun(counting)
                process = counting.part._sources["p"].tokenizer
                assert isinstance(process, TokenizerProcess)
                if reload:
                    counting.reload(text_of(""))
            with pytest.raises(ProcessLookupError):
                os.kill(process.pid, 0)

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
