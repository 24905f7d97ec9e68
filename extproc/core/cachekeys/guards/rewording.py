"""One wording for what English says in several, before it is asked what kind of question it is.

Owns greetings and thanks, passive questions, the place of a contracted `not`. Each changes a text only where
its whole form is known; what is in doubt stays as it is, and differs.
"""

from __future__ import annotations

import re
from typing import Final

from extproc.core.cachekeys.guards.tokens import GuardToken
from extproc.core.cachekeys.guards.words import (
    AUXILIARY,
    BEING,
    DAYS,
    MODALS,
    PRONOUNS,
    QUESTION_WORDS,
    words_of,
)

_GREETING: Final = re.compile(
    r"(?:hi|hello|hey|good (?:morning|evening|afternoon))(?: there)?\s*[,!.]\s*(?=(\w+))", re.IGNORECASE
)
_HELP: Final = re.compile(
    r"(?:can|could) (?:you|someone) (?:please )?help(?: me)?\s*\?\s*(?=\w)", re.IGNORECASE
)
_THANKS: Final = re.compile(
    r"(?<=[.?!])\s*(?:thanks|thank you|thx)(?: a lot| so much| in advance)?\s*[.!]*\s*$", re.IGNORECASE
)
#: What a greeting stands before; `Hello, world` is none.
_BEGINS: Final = QUESTION_WORDS | AUXILIARY | MODALS | {"i", "please"}
_DETERMINERS: Final = words_of("the my your his her its our their this that")
_WAS: Final = frozenset({"was", "were"})
_ASK_WHO: Final = frozenset({"who", "whom", "what"})


def without_greeting(text: str) -> str:
    """A text without the greeting before its question, and the thanks behind it."""
    greeting = _GREETING.match(text)
    if greeting is not None and greeting.group(1).lower() in _BEGINS:
        text = text[greeting.end() :]
    asks = _HELP.match(text)
    if asks is not None:
        text = text[asks.end() :]
    # Behind a colon stands what is to be translated or corrected, and thanks are a part of it.
    return text if ":" in text else _THANKS.sub("", text)


def reworded(found: list[GuardToken]) -> list[GuardToken]:
    """The same tokens, or those of the usual wording."""
    return _active(_not_behind_its_subject(_phrases(found)))


def _phrases(found: list[GuardToken]) -> list[GuardToken]:
    """`I would like to` as `I want to`, `switch off` as `turn off`, `on Monday` as `Monday`."""
    out: list[GuardToken] = []
    texts = [token.text for token in found]
    index = 0
    while index < len(found):
        if texts[index : index + 4] == ["i", "would", "like", "to"]:
            out += [found[index], GuardToken("want"), found[index + 3]]
            index += 4
            continue
        after = texts[index + 1] if index + 1 < len(texts) else ""
        if texts[index] == "switch" and after in ("on", "off"):
            out.append(GuardToken("turn"))
        elif not (texts[index] == "on" and after in DAYS and out and out[-1].text not in BEING):
            out.append(found[index])
        index += 1
    return out


def _not_behind_its_subject(found: list[GuardToken]) -> list[GuardToken]:
    """`why isn't the sky green` as `why is the sky not green`; subjects of one or two words alone."""
    for index, token in enumerate(found[:3]):
        if not token.short or index == 0 or [each.text for each in found[: index - 1]] not in ([], ["why"]):
            continue
        first = found[index + 1].text if index + 1 < len(found) else ""
        size = 1 if first in PRONOUNS else 2 if first in _DETERMINERS else 0
        if size and len(found) > index + size:
            behind = index + 1 + size
            return [*found[:index], *found[index + 1 : behind], GuardToken("not"), *found[behind:]]
    return found


def _active(found: list[GuardToken]) -> list[GuardToken]:
    """`who was X built by`, `by whom was X built` and `X was built by whom` as `who built X`.

    Where the verb ends in -ed or is the same in both alone: of `written` we do not know that it is `wrote`.
    """
    texts = [token.text for token in found]
    if len(texts) < 5:
        return found
    if texts[:2] in (["by", "whom"], ["by", "who"]) and texts[2] in _WAS:
        subject, verb = found[3:-1], found[-1]
    elif texts[-2:] in (["by", "whom"], ["by", "who"]) and texts[-4] in _WAS:
        subject, verb = found[:-4], found[-3]
    elif texts[0] in _ASK_WHO and texts[1] in _WAS and texts[-1] == "by":
        subject, verb = found[2:-2], found[-2]
    else:
        return found
    who = GuardToken("what" if texts[0] == "what" else "who")
    whole = verb.text.endswith("ed") or verb.text in ("built", "made", "found", "won", "led")
    if not subject or not whole or any(token.text in AUXILIARY | MODALS | {"not", "by"} for token in subject):
        return found
    return [who, verb, *subject]
