"""A file's tokenizer in a process beside the service: `main` is its end, `TokenizerProcess` the service's.

Owns the process. To read a tokenizer of megabytes, and to free it, takes the interpreter's lock for tenths of
a second and more: within the service every decision would wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec

from extproc.pipes import begun, ended, frame_of, framed, read_frame
from extproc.tokens.tokenizer import TokenizerError, load

#: A frame is no longer: a batch has a few thousand characters.
FRAME_MAX: Final = 16 * 1024 * 1024
#: A file that takes so long to read, and a batch that takes so long to count: the process hangs.
LOADS_S: Final = 120.0
HANGS_S: Final = 30.0
#: It gives way to whoever serves.
NICE: Final = 10


class TextsToCount(msgspec.Struct, frozen=True):
    """Texts, in order."""

    texts: list[str]


class TextsCounted(msgspec.Struct, frozen=True):
    """Tokens of each text; first of all what a cut costs (`bias`), or why the file cannot be used."""

    counts: list[int] = []
    bias: float = 0.0
    problem: str = ""


def main(stdin: BinaryIO, stdout: BinaryIO, path: str) -> None:
    """Read the file, say so, and count until nobody asks any more."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    try:
        tokenizer = load(Path(path))
    except TokenizerError as error:
        _say(stdout, TextsCounted(problem=str(error)))
        return
    _say(stdout, TextsCounted(bias=tokenizer.bias))
    decoder = msgspec.msgpack.Decoder(TextsToCount)
    while (frame := read_frame(stdin, most=FRAME_MAX)) is not None:
        _say(stdout, TextsCounted(tokenizer.counts(decoder.decode(frame).texts)))


def _say(stdout: BinaryIO, told: TextsCounted) -> None:
    stdout.write(framed(told))
    stdout.flush()


class TokenizerProcess:
    """The service's end. `bias` is what a cut between two words costs, in tokens."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._decoder = msgspec.msgpack.Decoder(TextsCounted)
        self.bias = 0.0

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @classmethod
    async def of(cls, path: Path) -> Self:
        """One that has read the file. Raises TokenizerError."""
        try:
            made = cls(await begun((sys.executable, "-m", "extproc.tokens.process", str(path))))
        except OSError as error:
            raise TokenizerError(f"{path}: no process to count with: {error}") from error
        try:
            told = await made._heard(LOADS_S)
        except (OSError, TimeoutError) as error:
            await made.end()
            raise TokenizerError(f"{path}: cannot be read: {error or 'it takes too long'}") from error
        except BaseException:
            await made.end()
            raise
        if told.problem:
            await made.end()
            raise TokenizerError(told.problem)
        made.bias = told.bias
        return made

    async def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text. Raises OSError or TimeoutError: then it is of no more use."""
        stdin = self._process.stdin
        assert stdin is not None
        # Half a surrogate pair is nothing that can be sent.
        stdin.write(framed(TextsToCount([text.encode("utf-8", "replace").decode() for text in texts])))
        await stdin.drain()
        told = await self._heard(HANGS_S)
        if len(told.counts) != len(texts):
            raise OSError("its process answers another number of texts")
        return told.counts

    async def end(self) -> None:
        """End the process."""
        await ended(self._process)

    async def _heard(self, patience_s: float) -> TextsCounted:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            async with asyncio.timeout(patience_s):
                return self._decoder.decode(await frame_of(stdout, most=FRAME_MAX))
        except (EOFError, msgspec.DecodeError) as error:
            raise OSError("its process ended") from error


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer, sys.argv[1])
