"""Questions of the semantic cache in Redis: a store that several services have together.

Owns how they are kept, checked and confirmed. What is heard of other services is the session's. Vectors are
not there: each service's own process has them, and finds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from extproc.cache.purging import AnswerOrigin
from extproc.cache.redis.asked import AskedStore
from extproc.cache.redis.errands import Errand
from extproc.cache.redis.question_scripts import QuestionScripts
from extproc.cache.redis.question_session import QuestionSession
from extproc.cache.sealed import AnswerSeal
from extproc.cache.semantic.books import QuestionBooks
from extproc.cache.semantic.entries import QuestionSeal, SemanticCheck, SemanticEntry
from extproc.state.redis_session import ASK_PAUSE_NS, poisonous


class RedisQuestions(AskedStore[QuestionSession]):
    """A QuestionStore under a prefix, for one service's books. Raises ValueError for a URL of no Redis."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        name: str,
        seal: AnswerSeal,
        model_id: str,
        books: QuestionBooks,
        keep_s: float,
        budget_s: float,
        clock: Callable[[], int],
    ) -> None:
        counts: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        self.keep_s = keep_s
        self._books, self._clock = books, clock
        self._seal = QuestionSeal(seal, model_id=model_id)
        self._scripts = QuestionScripts(prefix, counts, name=name)
        session = QuestionSession(
            url,
            name=name,
            scripts=self._scripts,
            counts=counts,
            refused=refused,
            seal=self._seal,
            books=books,
            clock=clock,
        )
        super().__init__(session, self._scripts, counts=counts, refused=refused, budget_s=budget_s)
        self._started = False

    @property
    def seal(self) -> AnswerSeal:
        """What encrypts."""
        return self._seal.seal

    @seal.setter
    def seal(self, value: AnswerSeal) -> None:
        self._seal.seal = value

    @property
    def connected(self) -> bool:
        """Whether all that is kept there is known here."""
        return self.session.connected

    @property
    def started(self) -> bool:
        """Whether it was begun."""
        return self._started

    def start(self, unwanted: Callable[[str, AnswerOrigin], bool]) -> None:
        """Begin in the background; what is `unwanted` by scope and whose it is, is not taken and goes."""
        self._started = True
        self.session.unwanted = unwanted
        self.session.start()

    def keep(self, entry: SemanticEntry, *, begun_ns: int) -> None:
        """Have it kept, soon."""
        data, answer, books = self._seal.write(entry), entry.answer, self._books
        whose = (answer.tenant, answer.model, answer.pool)
        bounds = (books.entries_max, books.bytes_max, math.ceil(self.keep_s * 1e3))
        said = (entry.key, data, entry.size, entry.version, *whose, *bounds)
        self._errand(Errand("keep", entry.scope, said, len(data), begun_ns))

    def checked(self, entry: SemanticEntry, check: SemanticCheck, *, would: bool) -> None:
        """Have it known, soon."""
        sample = self._seal.write_sample(entry.scope, check) if would else b""
        keep_ms = math.ceil(self.keep_s * 1e3)
        said = (entry.key, entry.version, self._seal.write_check(entry, check), sample, keep_ms)
        self._errand(Errand("check", entry.scope, said, 256))

    def confirm(self, entry: SemanticEntry, tell: Callable[[bool], None]) -> None:
        """One round trip; what is late or away is not given."""
        if not self._may_ask(self._clock()):
            tell(False)
            return
        self._in_background(self._confirm(entry, tell))

    async def _confirm(self, entry: SemanticEntry, tell: Callable[[bool], None]) -> None:
        kept: Any = 0
        try:
            command = self._scripts.of("give", entry.scope, entry.key, entry.version)
            kept = await self._looks.ask(command, budget_s=self.budget_s)
        except Exception as error:  # noqa: BLE001 (whatever went wrong there, nothing is given here)
            self.counts["unconfirmed"] += 1
            if not poisonous(error):
                self.session.pause_until_ns = self._clock() + ASK_PAUSE_NS
        finally:
            tell(kept == 1)

    def drop(self, scope: str, keys: Sequence[bytes]) -> None:
        """Have them forgotten, soon."""
        if keys:
            self._errand(Errand("drop", scope, tuple(keys)))

    def _errand(self, errand: Errand) -> bool:
        put = super()._errand(errand)
        if not put:
            self.counts["dropped.away"] += 1
        return put
