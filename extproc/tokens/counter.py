"""Counts one pool's prompts: what is known at once, what is not in the background, and whether it is right.

Owns the order: texts that were counted before cost a hash; of all others the bytes are estimated now, and
they are counted for the next time. What comes back from engines teaches what the template adds, and whether
the tokenizer is the model's at all.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from extproc.core.body_messages import bytes_of
from extproc.core.prefix import CALLS_MARK, MESSAGE_MARK, TOOLS_MARK
from extproc.core.promptcount import CountErrors, PromptCount, PromptShape
from extproc.core.request import Request, RouteKind
from extproc.tokens.blocks import blocks
from extproc.tokens.counts import SegmentCounts
from extproc.tokens.overhead import TemplateOverhead, plausible
from extproc.tokens.tokenizer import CountTexts

#: Bytes of one prompt that are hashed on the event loop (about 1 µs a KB); a larger one is estimated.
HASHED_BYTES_MAX: Final = 256 * 1024
#: Bytes of texts that wait to be counted; what comes beyond is estimated, and counted another time.
BACKLOG_BYTES_MAX: Final = 4 * 1024 * 1024
#: Answers before a tokenizer is judged, and before a bound is held by its counts.
JUDGED_MIN, SURE_MIN = 16, 8
#: Answers of a kind that teach its template before its counts are judged.
TAUGHT_MIN: Final = 3

#: Plain prompts, of which nothing counts but their texts.
TEXT_KINDS: Final = frozenset(
    {RouteKind.COMPLETION, RouteKind.GENERATE, RouteKind.GENERATE_STREAM, RouteKind.COMPAT}
)

_SYSTEM: Final = MESSAGE_MARK + b'"system"'


class PoolCounter:
    """One pool's counts. `wake` is called when there is something to count."""

    def __init__(self, *, bytes_max: int, error_max: float, inline_bytes: int = 0) -> None:
        self.error_max, self.inline_bytes = error_max, inline_bytes
        #: As the port has it.
        self.context_tokens = 0
        self.known = SegmentCounts(bytes_max)
        self.overhead = TemplateOverhead()
        self.errors = CountErrors()
        #: Counts a few bytes at once; None where none may be (an engine's).
        self.inline: CountTexts | None = None
        self.wake: Callable[[], None] = _nobody
        #: Why there are no counts; "" where there are.
        self.problem = "the tokenizer is being read"
        #: What a cut costs, in tokens.
        self.bias = 0.0
        #: Prompts by how they were sized: exact, partly, estimated; texts: known, new, dropped.
        self.prompts: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        #: Texts to be counted, by key: of a long text its blocks, which are its parts.
        self._backlog: OrderedDict[bytes, str] = OrderedDict()
        self._backlog_bytes = self._taken_bytes = 0
        self._parts: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()

    def begin(self, bias: float, inline: CountTexts | None) -> None:
        """There is a tokenizer from now on: what another counted is forgotten."""
        self.known.clear()
        self._parts.clear()
        self.errors = CountErrors()
        self.overhead = TemplateOverhead()
        self.bias, self.inline, self.problem = bias, inline, ""

    def end(self, problem: str) -> None:
        """There is none any more, and why."""
        self.problem, self.inline = problem, None
        self._backlog.clear()
        self._backlog_bytes = self._taken_bytes = 0

    @property
    def distrusted(self) -> str:
        """Why its counts are not gone by; "" where they are."""
        share = self.errors.share
        if self.errors.count < JUDGED_MIN or share is None or share <= self.error_max:
            return ""
        # Another model's is off everywhere; a few prompts that hold what nobody counts are not.
        if self.errors.median <= self.error_max:
            return ""
        return (
            f"its counts are {share:.0%} off those that the engine tells (more than {self.error_max:.0%}): "
            "it is another model's; write the path of the served model's tokenizer.json"
        )

    @property
    def margin(self) -> int | None:
        """By how many tokens its counts may be off; None where too few answers tell."""
        return self.errors.worst if self.errors.count >= SURE_MIN else None

    def count(self, request: Request, estimate: int, bytes_per_token: float) -> PromptCount | None:
        """What is known of a prompt's text; None where there is no tokenizer, or too much to hash."""
        if self.problem or not request.segments:
            return None
        if request.prompt_bytes > HASHED_BYTES_MAX:
            self.prompts["estimated"] += 1
            return None
        shape = shape_of(request)
        if not shape.known:
            # The estimate has learned a little of what stands beside texts; a count has none of it.
            self.prompts["estimated"] += 1
            return None
        if request.more_than_text:
            shape = replace(shape, known=False)
        keys, tokens, known_bytes = [], 0, 0
        for text in request.segments:
            key = self.known.key(text)
            keys.append(key)
            count, size = self._count(key, text)
            tokens += count
            known_bytes += size
        left = max(0, request.prompt_bytes - known_bytes)
        added = self.overhead.of(shape)
        exact = left == 0 and added is not None and shape.known
        expected = max(1, round(tokens + left / bytes_per_token + (added or 0.0)))
        used = known_bytes > 0 and added is not None and not self.distrusted
        self.prompts["estimated" if not used else "exact" if exact else "partly"] += 1
        return PromptCount(
            tokens=expected if used else None,
            exact=exact and used,
            shape=shape,
            texts=tuple(keys),
            estimate=estimate,
            margin=self.margin if exact and used else None,
        )

    def ended(self, counted: PromptCount, told: int) -> None:
        """A prompt's answer has come: its engine counted so many tokens."""
        tokens = 0
        for key in counted.texts:
            each = self._sum(key)
            if each is None:
                return
            tokens += each
        shape = counted.shape
        if not shape.known:
            return
        added = self.overhead.of(shape)
        # What no template adds teaches nothing of it, and counts as an error from the first time on.
        judged = self.overhead.seen(shape.kind) >= TAUGHT_MIN or not plausible(shape, told - tokens)
        if added is not None and judged:
            self.errors.saw(max(1, round(tokens + added)), told)
        self.overhead.saw(shape, told - tokens)

    def take(self, bytes_max: int) -> dict[bytes, str]:
        """Texts to be counted, the oldest first, of so many bytes in all; one at least where any waits."""
        taken: dict[bytes, str] = {}
        size = 0
        while self._backlog and (not taken or size < bytes_max):
            key, text = self._backlog.popitem(last=False)
            taken[key] = text
            size += len(text)
            self._backlog_bytes -= len(text)
        self._taken_bytes = size
        return taken

    def counted(self, counts: Mapping[bytes, int]) -> None:
        """Texts that were taken were counted."""
        self._taken_bytes = 0
        for key, tokens in counts.items():
            self.known.put(key, tokens)

    @property
    def waiting(self) -> int:
        """Characters that wait to be counted, or are being counted."""
        return self._backlog_bytes + self._taken_bytes

    def _count(self, key: bytes, text: str) -> tuple[int, int]:
        """A text's tokens as far as they are known, and of how many of its bytes."""
        known = self._sum(key)
        if known is not None:
            self.texts["known"] += 1
            return known, bytes_of((text,))
        if not text:
            self.known.put(key, 0)
            return 0, 0
        self.texts["new"] += 1
        if self.inline is not None and len(text) <= self.inline_bytes:
            tokens = self.inline((text,))[0]
            self.known.put(key, tokens)
            return tokens, bytes_of((text,))
        found = blocks(text)
        if len(found) == 1:
            self._wait(key, text)
            return 0, 0
        keys = tuple(map(self.known.key, found))
        self._parts[key] = keys
        if len(self._parts) > PARTS_MAX:
            self._parts.popitem(last=False)
        tokens, size, cuts = 0, 0, 0
        for block_key, block in zip(keys, found, strict=True):
            count = self.known.get(block_key)
            if count is None:
                self._wait(block_key, block)
            else:
                tokens, size, cuts = tokens + count, size + bytes_of((block,)), cuts + 1
        return tokens - round(self.bias * min(cuts, len(found) - 1)), size

    def _sum(self, key: bytes) -> int | None:
        """A text's tokens, once all of its blocks were counted."""
        known = self.known.get(key)
        parts = self._parts.get(key) if known is None else None
        if parts is None:
            return known
        total = 0
        for part in parts:
            tokens = self.known.get(part)
            if tokens is None:
                return None
            total += tokens
        total -= round(self.bias * (len(parts) - 1))
        self.known.put(key, total)
        del self._parts[key]
        return total

    def _wait(self, key: bytes, text: str) -> None:
        if key in self._backlog:
            return
        if self._backlog_bytes + len(text) > BACKLOG_BYTES_MAX:
            self.texts["dropped"] += 1
            return
        self._backlog[key] = text
        self._backlog_bytes += len(text)
        self.wake()


#: Long texts whose blocks are remembered until all were counted.
PARTS_MAX: Final = 4_096


def shape_of(request: Request) -> PromptShape:
    """What a template adds tokens for."""
    if request.kind is not RouteKind.CHAT:
        return PromptShape("text", len(request.segments), known=request.kind in TEXT_KINDS)
    first = request.marks[0] if request.marks else b""
    tools = b""
    if first.startswith(TOOLS_MARK):
        tools, _, rest = first.partition(MESSAGE_MARK)
        first = MESSAGE_MARK + rest
    # Messages of a shape that nobody reads are one text without a mark.
    known = first.startswith(MESSAGE_MARK) and not any(CALLS_MARK in mark for mark in request.marks)
    known = known and not (request.tools and not tools)
    # Some templates add a message of their own where there is no system message.
    kind = "chat, system" if first.startswith(_SYSTEM) else "chat"
    return PromptShape(kind, max(1, request.messages), tools, known)


def _nobody() -> None:
    """Nobody counts yet."""
