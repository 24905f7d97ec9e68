"""One phrasing for questions that English has several whole forms of, before they are taken apart.

Owns forms that are known from their first word to their last, and what is typed in several ways. A text that
is in none of them stays as it is. Two things that are compared have one order.
"""

from __future__ import annotations

import re
from typing import Final

from extproc.core.cachekeys.guards.words import words_of

_QUESTION: Final = r"(?=(?:what|which|who|when|where|why|how)\b)"
_TASK: Final = r"(?=(?:explain|describe|tell|give|write|list|name|define|show|translate|summari[sz]e)\b)"
_UNITS: Final = "second|minute|hour|day|week|month|year|mile|foot|inch|met(?:er|re)|lit(?:er|re)|gram|pound"


def _form(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


#: Each in turn: what is there, and what is read in its place.
_FORMS: Final = (
    # What is typed in several ways.
    (re.compile(r"\bU\.S\.(?:A\.)?(?!\w)"), "USA"),
    (_form(r"(?:°\s?|\bdegrees? )(?:c|celsius|centigrade)\b"), " celsius"),
    (_form(r"(?:°\s?|\bdegrees? )(?:f|fahrenheit)\b"), " fahrenheit"),
    (_form(rf"(?<![\w-])(\d+)-(?=(?:{_UNITS})\b)"), r"\1 "),
    (_form(r"(?<=\d)\s?([ap])\.m\.?(?!\w)"), r" \1m"),
    (_form(r"^(can|could|would) u\b"), r"\1 you"),
    (_form(r"[\s,]+(?:pls|plz)(?=[.?!]*$)"), " please"),
    # What is only said before it.
    (_form(r"^(?:(?:a )?quick question|one question)\s*[:,]\s*(?=\w)"), ""),
    (_form(rf"^i(?: was|'m| am) (?:just )?wondering {_QUESTION}"), "tell me "),
    (_form(rf"^(?:(?:do you have )?any idea) {_QUESTION}"), "tell me "),
    (_form(r"^(?:sorry to bother you,? but|thanks in advance\s*[:,.]) (?=\w)"), ""),
    (_form(r"\?{2,}$"), "?"),
    (_form(rf"^help me (?:to )?understand\s*[:,]?\s*{_QUESTION}"), "explain "),
    (_form(rf"^i(?:'d like| would like| want) you to {_TASK}"), ""),
    (_form(r"^((?:what|who) (?:is|are) .+?), exactly(?=[?.]*$)"), r"\1"),
    # What asks the same.
    (_form(r"^in (?:what|which) way (do|does|did) "), r"how \1 "),
    (_form(r"^who(?:'s| is| was) the (?:author|writer) of "), "who is the author of "),
    (
        _form(r"^who wrote (?!(?:to|about|in|for|that|this|it|down|off|on|with|and|his|her|their|back)\b)"),
        "who is the author of ",
    ),
    (_form(r"^(?:by whom (?:was|were) )(.+) written(?=[?]*$)"), r"who is the author of \1"),
    (_form(r"^(.+) (?:was|were) written by whom(?=[?]*$)"), r"who is the author of \1"),
    (_form(r"^is (\S+) or (\S+) (better|worse|\w+er)(?=[?]*$)"), r"which is \3, \1 or \2"),
    (_form(r"^explain (?:to me )?what (.+) does(?=[.?]*$)"), r"what does \1 do"),
    (_form(r"^what is (\S+) short for(?=[?.]*$)"), r"what does \1 stand for"),
    (_form(r"^what is meant by (?:the (?:word|term) )?(\w+)(?=[?.]*$)"), r"what does \1 mean"),
    (_form(r"^give me (?:a|the) definition of "), "define "),
    (
        _form(r"^how (?:do|does) (.+?) differ from (.+?)(?=[?.!]*$)"),
        r"what is the difference between \1 and \2",
    ),
    (_form(r"^how do (.+?) and (.+?) differ(?=[?.!]*$)"), r"what is the difference between \1 and \2"),
)
#: The same of other languages, of which no more is known: politeness, and whole forms of one question.
_FOREIGN_FORMS: Final = (
    (_form(r"^([^:]*\w),\s*(?:bitte|por favor|s'il (?:te|vous) pla[iî]t)(?=\s*[.?!]*$)"), r"\1"),
    (_form(r"^(?:por favor|bitte)[\s,]+(?=\w)"), ""),
    (_form(r"^erkläre? (mir )?(?:bitte )?(?=\w)"), r"erkläre \1"),
    (_form(r"^wieso (?=\w)"), "warum "),
    (_form(r"^was versteht man unter (?=\S+$)"), "was ist "),
    (_form(r"^wie heißt die hauptstadt (?=\w)"), "was ist die Hauptstadt "),
    (_form(r"^c'est quoi,? (?=\w)"), "qu'est-ce que "),
    (_form(r"^comment puis-je (?=\w+(?:er|ir|re)\b)"), "comment "),
    (_form(r"^où est situ(?:é|ée) (?=\w)"), "où se trouve "),
    (re.compile(r"^请(?=解释|告诉|帮|写|列|翻译|说明|介绍)"), ""),
    (re.compile(r"^如何"), "怎么"),
    (re.compile(r"^什么是([^\s，,。？?]+)(?=\s?[？?]?$)"), r"\1是什么"),
    (re.compile(r"(?:需要|要)多(?:久|长时间)"), "要多久"),
    (re.compile(r"(?<=して|えて)ください(?=[。！!]?$)"), ""),
    (re.compile(r"(?<=とは)何ですか(?=[？?。]?$)"), ""),
)
#: Two that differ from each other, whichever is said first.
_BOTH: Final = _form(r"^(what(?:'s| is) the difference between|compare) (.+?) and (.+?)([?.!]*)$")
#: With one of these it is not known of which of the two it is said.
_BELONGS: Final = words_of(
    """
    and or of in on at for from with without to by than when while if as that which who whose before
    after during under over not is are was were my your his her their its
    """
)
#: A longer text is in none of these forms; and to look for them takes steps by its length squared.
CHARS_MAX: Final = 300
#: Words of one of the two.
_WORDS_MAX: Final = 4


def phrased(text: str) -> str:
    """A text in the one phrasing of what it asks; one that is long or in no known form as it is."""
    text = text.replace("’", "'").strip()
    if len(text) > CHARS_MAX:
        return text
    for form, said in _FORMS if text.isascii() else _FORMS + _FOREIGN_FORMS:
        text = form.sub(said, text)
    both = _BOTH.match(text)
    if both is None:
        return text
    head, one, other, end = both.groups()
    if not (_plain(one) and _plain(other)):
        return text
    first, second = sorted((one, other), key=lambda each: (each.casefold(), each))
    return f"{head} {first} and {second}{end}"


def _plain(text: str) -> bool:
    """Whether it is one thing, with nothing that belongs to both."""
    words = text.casefold().split()
    return len(words) <= _WORDS_MAX and _BELONGS.isdisjoint(words) and not set(",;:\"'`“”") & set(text)
