"""What kind of answer a question asks for, and the rest of it once that is taken away.

Owns the forms of English questions. A form that is not known is a task, and every word of it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from extproc.core.cachekeys.guards.tokens import GuardToken
from extproc.core.cachekeys.guards.words import (
    ATTRIBUTES,
    AUXILIARY,
    DOES,
    MEASURES,
    MODALS,
    PRONOUNS,
    QUESTION_WORDS,
    STOP,
    TAUGHT,
    words_of,
)

#: At which temperature something does this is this point of it.
_POINTS: Final = {"melt": "melting", "boil": "boiling", "freeze": "freezing"}
_NOW: Final = frozenset({"do", "does"})
_ANYONE: Final = frozenset({"i", "we", "one", "someone"})
#: Polite ways round, before what is asked.
_POLITE: Final = tuple(
    tuple(line.split())
    for line in (
        "please",
        "i want to know",
        "i would like to know",
        "do you know",
    )
)
_ASKED_OF_YOU: Final = words_of(
    """
    explain describe tell give write list name recommend suggest summarise summarize show translate
    convert define calculate compute
    """
)
_WAYS: Final = tuple(
    tuple(line.split())
    for line in (
        "what is the way to",
        "what is the best way to",
        "what is a good way to",
        "what are good ways to",
        "what is the right way to",
        "which is the best way to",
    )
)
_YEARS: Final = (("in", "what", "year"), ("in", "which", "year"), ("what", "year"), ("which", "year"))
_WHOSE: Final = frozenset({"", "my", "your", "his", "her", "its", "our", "their", "of", "this", "it"})


def asked(found: Sequence[GuardToken]) -> tuple[str, list[GuardToken]]:
    """What is asked for, and the tokens that say of what.

    how-to, how, many, price, who, when, where, why, what, explain, meaning, whether, or task.
    """
    rest = _setting_last(_unwrapped(list(found)))
    low = [token.text for token in rest]
    if not low:
        return "task", rest
    if (converted := _conversion(rest)) is not None:
        return "task", converted
    for way in _WAYS:
        if _begins(low, way):
            return "how-to", rest[len(way) :]
    for years in _YEARS:
        # What year it is, is not when it is.
        if _begins(low, years) and low[len(years) : len(years) + 1] in (["did"], ["was"], ["were"]):
            return "when", rest[len(years) :]
    first = low[0]
    second = low[1] if len(low) > 1 else ""
    if first == "how":
        return _how(low, rest)
    if first in ("what", "which"):
        return _what(low, rest)
    if first == "where" and len(low) > 4 and low[1] in ("can", "do") and low[2:4] == ["i", "find"]:
        return "where", rest[4:]
    if first in ("who", "whom", "whose", "when", "where", "why"):
        return ("who" if first == "whom" else first), rest[1:]
    if first in AUXILIARY or first in MODALS:
        # Its auxiliary says nothing more; a modal does, and is compared.
        return "whether", rest
    if first in ("explain", "describe", "define"):
        if second in QUESTION_WORDS:
            return asked(_is_first(rest[1:]))
        return "explain", rest[1:]
    if first in ("calculate", "compute") and any(token.kind == "number" for token in rest):
        return "what", rest[1:]
    if first == "at" and low[2:4] == ["temperature", "does"] and low[-1] in _POINTS and len(low) > 5:
        return "what", [GuardToken(_POINTS[low[-1]]), GuardToken("point"), *rest[4:-1]]
    if low[:3] == ["for", "how", "long"]:
        return asked(rest[1:])
    if first in ("list", "name") and second not in _WHOSE:
        return "what", rest[1:]
    if first == "tell" and second == "me" and len(low) > 2 and low[2] in ("the", *QUESTION_WORDS):
        return asked(_is_first(rest[2:])) if low[2] in QUESTION_WORDS else ("what", rest[2:])
    return "task", rest


def _unwrapped(rest: list[GuardToken]) -> list[GuardToken]:
    """Without what is only polite."""
    changed = True
    while changed:
        changed = False
        low = [token.text for token in rest]
        for polite in _POLITE:
            if len(low) > len(polite) and _begins(low, polite):
                rest, changed = rest[len(polite) :], True
                break
        low = [token.text for token in rest]
        if len(low) > 3 and low[0] in ("can", "could", "would") and low[1] == "you":
            then = 3 if low[2] == "please" else 2
            if low[then] in _ASKED_OF_YOU:
                rest, changed = rest[then:], True
        if len(rest) > 1 and rest[-1].text == "please" and all(token.text != ":" for token in rest):
            rest, changed = rest[:-1], True
    low = [token.text for token in rest]
    for summary in (["give", "me", "a", "summary", "of"], ["give", "a", "summary", "of"]):
        if _begins(low, summary):
            return [GuardToken("summarise"), *rest[len(summary) :]]
    if low[:3] == ["explain", "to", "me"]:
        rest = [rest[0], *rest[3:]]
        low = [token.text for token in rest]
    if low[:1] and low[0] in ("write", "explain", "give", "show") and low[1:2] == ["me"]:
        rest = [rest[0], *rest[2:]]
    if low[-2:] == ["to", "me"] and low[0] in ("explain", "describe") and low[1] not in QUESTION_WORDS:
        rest = rest[:-2]
    return rest


def _setting_last(rest: list[GuardToken]) -> list[GuardToken]:
    """`In Python, how …` as `how … in Python`."""
    if len(rest) > 3 and rest[0].text == "in" and rest[2].text in ("how", "what", "which", "why"):
        return [*rest[2:], *rest[:2]]
    return rest


def _how(low: list[str], rest: list[GuardToken]) -> tuple[str, list[GuardToken]]:
    second, third = (low[1] if len(low) > 1 else ""), (low[2] if len(low) > 2 else "")
    if second == "to":
        return "how-to", rest[2:]
    if second in ("do", "can", "could", "does") and (
        third in _ANYONE or (third == "you" and low[3:4] and low[3] in TAUGHT)
    ):
        return "how-to", rest[3:]
    if second == "much" and third in ("is", "are") and any(token.kind == "number" for token in rest[3:5]):
        return "what", rest[3:]
    if second == "much" and third in ("is", "are", "was", "were") and len(low) > 3:
        return "price", rest[3:]
    if second == "much" and third in DOES and low[-1] == "cost" and len(low) > 4:
        return "price", rest[3:-1]
    if second == "many" and third == "people" and low[3:5] in (["live", "in"], ["are", "in"]):
        return "what", [GuardToken("population"), *rest[4:]]
    if second == "many" and third == "inhabitants":
        left = rest[4:-1] if low[-1] == "have" and low[3] in _NOW else rest[4:] if low[3:4] == ["are"] else []
        if left:
            return "what", [GuardToken("population"), *left]
    if second == "many":
        return "many", _held(_had(rest[2:], said=True))
    if second in ("many", "much"):
        return "many", [GuardToken("much"), *rest[2:]]
    if second in MEASURES:
        return "what", [GuardToken(MEASURES[second]), *rest[2:]]
    if second in _NOW and "differ" in low[3:]:
        at = low.index("differ")
        between = rest[2:at] + rest[at + (2 if low[at + 1 : at + 2] == ["from"] else 1) :]
        return "what", [GuardToken("difference"), GuardToken("between"), *between]
    return "how", rest[1:]


def _had(rest: list[GuardToken], *, said: bool) -> list[GuardToken]:
    """`bones does a shark have` as `bones a shark`, which are its; `said` leaves its `have`."""
    for index, token in enumerate(rest):
        if token.text in _NOW:
            if 0 < index < len(rest) - 2 and rest[-1].text == "have":
                return [*rest[:index], *rest[index + 1 : len(rest) if said else -1]]
            break
    return rest


def _held(rest: list[GuardToken]) -> list[GuardToken]:
    """`bones are there in a shark` as `bones a shark have`."""
    for index, token in enumerate(rest):
        if token.text in ("are", "is") and index:
            behind = index + (2 if [each.text for each in rest[index + 1 : index + 2]] == ["there"] else 1)
            if len(rest) > behind + 1 and rest[behind].text == "in":
                return [*rest[:index], *rest[behind + 1 :], GuardToken("have")]
            break
    return rest


def _is_first(rest: list[GuardToken]) -> list[GuardToken]:
    """`what a black hole is` as `what is a black hole`, `what I should see` as `what should I see`."""
    if len(rest) > 3 and rest[1].text in PRONOUNS and rest[2].text in MODALS:
        return [rest[0], rest[2], rest[1], *rest[3:]]
    if len(rest) > 2 and rest[0].text in ("what", "who") and rest[-1].text in ("is", "are"):
        return [rest[0], rest[-1], *rest[1:-1]]
    return rest


def _what(low: list[str], rest: list[GuardToken]) -> tuple[str, list[GuardToken]]:
    if len(low) > 3 and low[1] in _NOW and low[-1] == "mean":
        return _meaning(rest[2:-1])
    if len(low) > 3 and low[1] in DOES and low[-1] == "cost":
        return "price", rest[2:-1]
    # Of a cost: what it costs to make is not what it is sold for.
    if low[2:5] == ["the", "price", "of"] and low[1] in ("is", "was") and len(low) > 5:
        return "price", rest[5:]
    if (low[1:2], low[-1]) in ((["does"], "do"), (["is"], "for")):
        code = [token for token in rest[2:-1] if token.text not in STOP]
        # Of code alone: what a word does is not what it means.
        if len(code) == 1 and code[0].kind == "literal" and not code[0].text.startswith('"'):
            return "explain", code
    if low[1:5] == ["is", "the", "meaning", "of"]:
        return _meaning(rest[5:])
    if low[1:2] in (["is"], ["are"]) and low[2:3] != ["the"]:
        left = [token.text for token in rest[2:] if token.text not in STOP]
        if len(left) <= 2 and ATTRIBUTES.isdisjoint(left):
            return "explain", rest[2:]
    if low[1:2] not in (["do"], ["does"]):
        rest = [rest[0], *_had(rest[1:], said=False)]
    return "what", _superlative_first(low, rest)


def _meaning(said: list[GuardToken]) -> tuple[str, list[GuardToken]]:
    """What my name, Adele or life means is not what it is; of a common or quoted word it is one."""
    of = [token for token in said if token.text not in STOP]
    common = len(of) == 1 and not of[0].named and of[0].text not in ("life", "existence")
    return "explain" if common else "meaning", said


def _superlative_first(low: list[str], rest: list[GuardToken]) -> list[GuardToken]:
    """`which river is the longest in Europe` as `the longest river in Europe`."""
    for index in (2, 3):
        tail = low[index + 1] if len(low) > index + 1 else ""
        asks = low[index : index + 1] in (["is"], ["are"]) and low[index - 1] not in STOP
        if asks and tail == "the" and len(low) > index + 2 and low[index + 2].endswith("est"):
            return [rest[index + 2], *rest[1:index], *rest[index + 3 :]]
    return rest[1:]


def _conversion(rest: list[GuardToken]) -> list[GuardToken] | None:
    """`how many B are N A`, `what is N A in B`, `convert N A to B`, all as the last; None for others."""
    low = [token.text for token in rest]
    many = low[:2] == ["how", "many"]
    if many:
        left = rest[2:]
    elif low[:2] == ["what", "is"] or low[:3] == ["how", "much", "is"]:
        left = rest[2:] if low[0] == "what" else rest[3:]
    elif low[0] == "convert":
        left = rest[1:]
    elif rest[0].kind == "number" and len(low) == 4 and low[2] in ("in", "to", "into"):
        left = rest
    else:
        return None
    left = [token for token in left if token.text not in STOP and token.text not in ("to", "into")]
    kinds = [token.kind for token in left]
    if many and kinds == ["unit", "number", "unit"]:
        left = [left[1], left[2], left[0]]
    elif many or kinds != ["number", "unit", "unit"]:
        return None
    return [GuardToken("convert"), *left]


def _begins(low: Sequence[str], head: Sequence[str]) -> bool:
    return tuple(low[: len(head)]) == tuple(head)
