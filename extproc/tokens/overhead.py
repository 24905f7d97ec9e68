"""What a chat template adds to the texts of a prompt, learned from the counts that engines tell.

Owns the learning. A template adds so much for a prompt and so much for each message; both are found by least
squares over what engines told, older answers fading. Tools are rendered by the template in its own way: what
one set of them costs is what answers with it had above all the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from extproc.core.promptcount import PromptShape

#: How much of what was known stays with each answer (about 100 answers weigh).
FADING: Final = 0.99
#: What the priors weigh, in answers.
PRIOR_WEIGHT: Final = 0.1
#: Tokens before anything was told: a chat's beginning, and what stands around each message (ChatML's: start,
#: role, line, end, line); a beginning of text around a plain prompt.
CHAT_PRIOR, TEXT_PRIOR = (3.0, 5.0), (1.0, 0.0)
#: What a template adds is within these; a tokenizer of another model is off by more, and teaches nothing.
ADDED_MAX, ADDED_EACH_MAX = 256.0, 32.0
#: Sets of tools that are known; the one unused for longest goes. What one may cost.
TOOLS_MAX, TOOLS_TOKENS_MAX = 1_024, 131_072.0
#: How fast a set's cost follows what is told.
TOOLS_GAIN: Final = 0.5


class TemplateCost:
    """`base + each · messages`, in tokens."""

    __slots__ = ("_m", "_mm", "_n", "_y", "_ym", "seen")

    def __init__(self, base: float, each: float) -> None:
        # A prior of two answers: with one message and with five.
        w = PRIOR_WEIGHT
        points = ((1.0, base + each), (5.0, base + 5.0 * each))
        self._n = w * 2
        self._m = w * sum(m for m, _ in points)
        self._mm = w * sum(m * m for m, _ in points)
        self._y = w * sum(y for _, y in points)
        self._ym = w * sum(y * m for m, y in points)
        #: Answers that taught.
        self.seen = 0

    def of(self, messages: int) -> float:
        """What is added to a prompt of so many messages; never below 0."""
        spread = self._n * self._mm - self._m * self._m
        each = (self._n * self._ym - self._m * self._y) / spread if spread > 1e-9 else 0.0
        base = (self._y - each * self._m) / self._n
        return max(0.0, base + each * messages)

    def saw(self, messages: int, tokens: float) -> None:
        """A prompt of so many messages had so many tokens that are in none of its texts."""
        self.seen += 1
        m = float(messages)
        self._n = self._n * FADING + 1.0
        self._m = self._m * FADING + m
        self._mm = self._mm * FADING + m * m
        self._y = self._y * FADING + tokens
        self._ym = self._ym * FADING + tokens * m


def plausible(shape: PromptShape, tokens: int) -> bool:
    """Whether a template may add so many tokens."""
    most = ADDED_MAX + ADDED_EACH_MAX * shape.messages
    return abs(tokens) <= (most + TOOLS_TOKENS_MAX if shape.tools else most)


class TemplateOverhead:
    """What the templates of one pool's model add, by the kind of prompt."""

    def __init__(self) -> None:
        self._kinds: dict[str, TemplateCost] = {}
        self._tools: OrderedDict[bytes, float] = OrderedDict()

    def of(self, shape: PromptShape) -> float | None:
        """Tokens that are added; None where its tools were never counted."""
        added = self._kind(shape.kind).of(shape.messages)
        if not shape.tools:
            return added
        tools = self._tools.get(shape.tools)
        if tools is None:
            return None
        self._tools.move_to_end(shape.tools)
        return added + tools

    def saw(self, shape: PromptShape, tokens: int) -> None:
        """An engine counted so many more than the texts have."""
        kind = self._kind(shape.kind)
        if not shape.tools:
            if plausible(shape, tokens):
                kind.saw(shape.messages, float(tokens))
            return
        cost = min(max(0.0, tokens - kind.of(shape.messages)), TOOLS_TOKENS_MAX)
        before = self._tools.get(shape.tools)
        self._tools[shape.tools] = cost if before is None else before + TOOLS_GAIN * (cost - before)
        self._tools.move_to_end(shape.tools)
        if len(self._tools) > TOOLS_MAX:
            self._tools.popitem(last=False)

    def seen(self, kind: str) -> int:
        """Answers of a kind that have taught."""
        found = self._kinds.get(kind)
        return found.seen if found is not None else 0

    def plain(self) -> dict[str, dict[str, float]]:
        """For people: what each kind adds."""
        return {
            name: {
                "base": round(each.of(0), 1),
                "each": round(each.of(2) - each.of(1), 2),
                "answers": each.seen,
            }
            for name, each in self._kinds.items()
            if each.seen
        }

    def _kind(self, name: str) -> TemplateCost:
        found = self._kinds.get(name)
        if found is None:
            found = self._kinds[name] = TemplateCost(*(CHAT_PRIOR if name.startswith("chat") else TEXT_PRIOR))
        return found
