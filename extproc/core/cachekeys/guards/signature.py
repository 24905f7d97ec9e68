"""What of a question must be equal in another one for the same answer to do.

Owns the kinds of difference. Two questions that read alike to an embedding may differ in a number, a negation
or the order of two names; here they are equal in all that is compared, or they are not the same question.
What is not known to say nothing counts: a word that only one of them has makes them two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from extproc.core.cachekeys.guards.asking import asked
from extproc.core.cachekeys.guards.phrasing import phrased
from extproc.core.cachekeys.guards.rewording import reworded, without_greeting
from extproc.core.cachekeys.guards.tokens import GuardToken, tokens, ungrouped
from extproc.core.cachekeys.guards.words import (
    ARTICLES,
    ATTRIBUTES,
    BEING,
    COMPARATIVES,
    DOES,
    ENGLISH,
    FOREIGN,
    FUTURE,
    HELPING,
    MADE_FOR,
    MODALS,
    NEGATIONS,
    NOT_COMPARED,
    NOT_FINITE,
    NOT_PLURAL,
    NUMBER_WORDS,
    PAST,
    QUANTIFIERS,
    SAME,
    SETTINGS,
    SHARED,
    SHOWN,
    STOP,
    STRANDED,
    UNCHANGED,
    WAS,
    WITH_IN,
    WITH_OF,
)

#: Why two questions are not the same, in the order in which they are looked at. `docs/semantic-cache.md` says
#: what each is.
GUARD_KINDS: Final = (
    "language",
    "numbers",
    "units",
    "code",
    "negation",
    "quantifiers",
    "modality",
    "comparison",
    "names",
    "question",
    "tense",
    "words",
    "order",
)
#: Variables, where a question has one: then `a` may be one too.
_LETTERS: Final = frozenset("bcdefghjklmnopqrstuvwxyz")
#: Questions that are others with `do`, and such that are others with `be`.
_DONE: Final = frozenset({"what", "where", "when"})
_BEING: Final = frozenset({"who", "whose", "why", "how", "whether"})
#: By one of these a text is known to be English.
_KNOWN: Final = ENGLISH | STOP | MODALS | NEGATIONS | QUANTIFIERS | COMPARATIVES
#: More tokens than these are no question that is compared.
TOKENS_MAX: Final = 400


class GuardSignature(msgspec.Struct, frozen=True, kw_only=True):
    """A question, as the guards compare it: sorted but for `order`, which holds all that has a place."""

    language: str
    question: str = ""
    tense: str = ""
    numbers: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    negation: tuple[str, ...] = ()
    quantifiers: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    comparison: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    order: tuple[str, ...] = ()


def signature(text: str) -> GuardSignature | None:
    """What is compared of a text; None where it holds nothing, or too much, to compare."""
    found = tokens(phrased(without_greeting(text)))
    if not found or len(found) > TOKENS_MAX:
        return None
    if not _english(found):
        # Nothing is known of its words: each counts, in its place.
        return GuardSignature(language="other", order=tuple(_literal(token) for token in found))
    found = reworded(ungrouped(found))
    question, rest = asked(found)
    tense = _tense(found)
    kinds: dict[str, list[str]] = {}
    order: list[str] = []
    setting = _setting(rest)
    attributes = sum(token.text in ATTRIBUTES for token in rest)
    bare = any(token.text in UNCHANGED for token in rest)
    helping = next((token for token in rest if token.text in HELPING), None)
    does = next((token for token in found if token.text in DOES), None)
    plural = question in ("how", "why", "explain", "how-to", "whether")
    said = _possessed(rest)
    for index, token in enumerate(said):
        if token.kind == "pause":
            order.append(token.text)
            continue
        text = _spelled(token, plural=plural)
        if _tells(said, index, question):
            # Of its place nothing is known: some say it behind, some before what it is about.
            kinds.setdefault("words", []).append("in" if text == "into" else text)
            continue
        kind = _kind(token, text)
        behind = said[index + 1].text if index + 1 < len(said) else ""
        if text in BEING | WAS and (
            text in NOT_FINITE or token is not helping or behind.endswith(("ed", "en"))
        ):
            # Who is served does not serve, and what has been done has not done it.
            text = text if text in NOT_FINITE else "is"
        elif kind == "words" and (text in STOP or token is does) and not (bare and text in BEING):
            continue
        if text == "into":
            text = "to"
        kinds.setdefault(kind, []).append(text)
        if token.named:
            kinds.setdefault("names", []).append(text)
        if not (attributes == 1 and text in ATTRIBUTES) and token is not setting:
            order.append(text)
    return GuardSignature(
        language="en",
        question=_helped(question, helping),
        tense=tense,
        order=tuple(order),
        **{kind: tuple(sorted(some)) for kind, some in kinds.items()},
    )


def differs(one: GuardSignature, other: GuardSignature) -> str:
    """The first kind in which two questions are not the same; "" where they are."""
    for kind in GUARD_KINDS:
        if getattr(one, kind) != getattr(other, kind):
            return kind
    return ""


def _helped(question: str, helping: GuardToken | None) -> str:
    """A kind of question with the auxiliary that makes it: `does it like` is not `is it like`."""
    if helping is None:
        return question
    # Of what is said within a sentence (`tell me why it falls`) the `do` is missing.
    if question in _DONE:
        return f"{question} do" if helping.text in DOES else question
    return f"{question} be" if question in _BEING and helping.text not in DOES else question


def _english(found: Sequence[GuardToken]) -> bool:
    """Whether its words are known: some of English, none of another language, all in Latin letters."""
    known = 0
    for token in found:
        if token.kind == "literal":
            continue
        if not token.text.isascii() and token.kind == "word" and not token.named:
            return False
        if token.text in FOREIGN and not token.named:
            return False
        known += (token.text in _KNOWN or token.kind == "unit") and token.text not in SHARED
    return known > 0


def _tells(said: Sequence[GuardToken], index: int, question: str) -> bool:
    """Whether a word that otherwise says nothing says something where it stands."""
    text = said[index].text
    before = said[index - 1] if index else None
    after = said[index + 1] if index + 1 < len(said) else None
    if text in ARTICLES:
        # No article: a variable, a letter.
        letters = text == "a" and any(token.text in _LETTERS and not token.named for token in said)
        return letters or after is None or after.kind in ("symbol", "literal")
    if text in SHOWN:
        # This year is not that year.
        return after is not None and after.kind == "unit"
    if text not in STRANDED:
        return False
    if after is None or after.kind == "pause":
        return True
    if text == "of":
        return before is not None and before.text in WITH_OF
    if text not in ("in", "into"):
        return False
    # What is in pesto is not what pesto is.
    if before is None:
        return question == "explain"
    stands = question in ("what", "who", "explain") and before.text in BEING | PAST
    return before.text in WITH_IN or (text == "in" and stands)


def _literal(token: GuardToken) -> str:
    """A token of another language: Sie is not sie, and der Gefangene is not der gefangene."""
    text = f"^{token.text}" if token.named else token.text
    return f"{text}'s" if token.owns else text


def _tense(found: Sequence[GuardToken]) -> str:
    """past or future by its auxiliaries, "" where they say neither: then its verbs do, which are compared."""
    texts = {token.text for token in found if token.kind == "word"}
    if texts & FUTURE:
        return "future"
    return "past" if texts & PAST else ""


def _possessed(rest: Sequence[GuardToken]) -> list[GuardToken]:
    """`France's capital` as `capital of France`: the owner behind what is owned."""
    out: list[GuardToken] = []
    owners: list[GuardToken] = []
    for token in rest:
        if owners and (token.text in STOP or token.kind != "word" or token.owns):
            out += owners
            owners = []
        if token.owns:
            # Its own name of several words goes with it.
            while token.named and out and out[-1].named:
                owners.insert(0, out.pop())
            owners.append(token)
        else:
            out.append(token)
    return out + owners


def _setting(rest: Sequence[GuardToken]) -> GuardToken | None:
    """The one language or tool in which it is all asked: `in Python`, `a Python list`; None where there is no
    such, or several."""
    places = [index for index, token in enumerate(rest) if token.text in SETTINGS]
    if len(places) != 1:
        return None
    index = places[0]
    before = rest[index - 1].text if index else ""
    followed = index + 1 < len(rest) and rest[index + 1].text not in STOP | MADE_FOR
    if before in ("in", "on", "using", "with") or (before in ("a", "the") and followed):
        return rest[index]
    return None


def _spelled(token: GuardToken, *, plural: bool) -> str:
    text = token.text
    if token.kind != "word":
        return text
    if text in SAME:
        return SAME[text]
    if plural and not token.named and text not in NOT_PLURAL and len(text) > 3 and text.endswith("s"):
        one = _singular(text)
        return SAME.get(one, one)
    return text


def _singular(text: str) -> str:
    if text.endswith("ies") and len(text) > 4:
        return text[:-3] + "y"
    if text.endswith(("shes", "ches", "sses", "xes")):
        return text[:-2]
    return text if text.endswith(("ss", "us", "is", "ics")) else text[:-1]


def _kind(token: GuardToken, text: str) -> str:
    """Which of the kinds a token is of."""
    if token.kind == "number" or text in NUMBER_WORDS:
        return "numbers"
    if token.kind == "unit":
        return "units"
    if token.kind in ("literal", "symbol"):
        return "code"
    if text in NEGATIONS:
        return "negation"
    if text in QUANTIFIERS:
        return "quantifiers"
    if text in MODALS:
        return "modality"
    ordered = text.endswith(("er", "est")) and len(text) > 4 and text not in NOT_COMPARED
    return "comparison" if text in COMPARATIVES or (ordered and not token.named) else "words"
