"""Takes a configuration file live: watched, read when it has been still, and recorded when it was taken.

Owns when the file is looked at. What a bad one does is the caller's `apply`, the same for a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from extproc.config.load import CONFIG_BYTES_MAX
from extproc.history.versions import ConfigHistory, HistoryError, digest, locked, read_text

log = logging.getLogger(__name__)

#: How often the file is looked at.
POLL_S = 0.5
#: A changed file is read once nothing has changed for this long: a writer may be half way through.
STILL_S = 0.3
#: From one reading that a signal asked for to the next: a storm of them is four reloads a second.
APART_S = 0.25
#: What a folder that is not ours to write answers.
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Follow:
    """One file and what applies it. `apply` answers whether the file was taken.

    `supervised`: the file is a supervisor's copy, which says when it has changed (`now`) and records it.
    """

    def __init__(self, file: Path, apply: Callable[[], Awaitable[bool]], *, supervised: bool = False) -> None:
        self.file = file
        self._apply = apply
        self._supervised = supervised
        self._stamp = self._look()
        self._digest = self._content()
        # What the service starts with is a version too: the first edit can be undone by it.
        self._record = not supervised
        self._asked = asyncio.Event()
        self._again_s = float("-inf")
        #: Waits so many seconds.
        self.pause: Callable[[float], Awaitable[None]] = asyncio.sleep
        #: Whether it was said that nothing is recorded; once until something was.
        self._said = False

    def now(self) -> None:
        """Read it soon, as a signal asks: at once, or APART_S after the last time, once for all that ask."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            if self._record:
                self._record = False
                await asyncio.to_thread(self._note)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self._supervised else POLL_S):
                    await self._asked.wait()
            if self._asked.is_set():
                clock = asyncio.get_running_loop().time
                if (wait_s := self._again_s - clock()) > 0.0:
                    await self.pause(wait_s)
                self._asked.clear()
                self._stamp = self._look()
                self._digest = await asyncio.to_thread(self._content)
                await self._take()
                self._again_s = clock() + APART_S
            elif not self._supervised:
                await self._watch()

    async def _watch(self) -> None:
        """Take the file once it has changed and is still."""
        stamp = self._look()
        while stamp is not None and stamp != self._stamp and not self._asked.is_set():
            self._stamp = stamp
            await asyncio.sleep(STILL_S)
            stamp = self._look()
            if stamp == self._stamp:
                content = await asyncio.to_thread(self._content)
                if content != self._digest:
                    log.info("%s has changed", self.file)
                    self._digest = content
                    await self._take()

    async def _take(self) -> None:
        try:
            self._record = await self._apply() or self._record
        except Exception:
            # Without this task no change would ever be taken again.
            log.exception("%s could not be taken; the last good configuration stays", self.file)
        self._record = self._record and not self._supervised

    def _look(self) -> tuple[int, int, int] | None:
        """What tells one state of the file from another; None while there is none."""
        try:
            found = self.file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _content(self) -> str:
        """The text's hash; what is too large to be read is its stamp."""
        with contextlib.suppress(OSError):
            if self.file.stat().st_size <= CONFIG_BYTES_MAX:
                return hashlib.sha256(self.file.read_bytes()).hexdigest()
        return repr(self._stamp)

    def _note(self) -> None:
        """Record what was taken. A command that writes just now records it itself."""
        try:
            with locked(self.file, wait=False):
                text = read_text(self.file)
                if digest(text) == self._digest:
                    ConfigHistory(self.file).note(text)
        except BlockingIOError:
            return
        except (HistoryError, OSError, UnicodeDecodeError) as error:
            if not self._said:
                self._say(error)
            self._said = True
        else:
            self._said = False

    def _say(self, error: Exception) -> None:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in READ_ONLY:
            # A mounted configuration is: nothing is wrong with it, and its versions are kept elsewhere.
            log.info(
                "no history of %s is kept: its folder cannot be written; undo a change where it comes from",
                self.file,
            )
        else:
            log.warning("changes of %s are not recorded: %s", self.file, error)
