"""A question taken apart: words, numbers, units, names and what is literal, as the guards compare them.

Owns the spelling of each token. What stands in quotes or looks like code is literal: it is compared letter by
letter.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

from extproc.core.cachekeys.guards.words import (
    AUXILIARY,
    CARDINALS,
    MODALS,
    MONTHS,
    ORDINALS,
    PER,
    QUESTION_WORDS,
    RATES,
    STOP,
    UNITS,
    words_of,
)

_TOKEN: Final = re.compile(
    r"""
    (?P<line>\n[\ \t]*(?=\S))
  | (?P<quoted>```.*?```|`[^`]*`|"[^"]*"|“[^”]*”|«[^»]*»|(?<!\w)'[^'\s](?:[^']*[^'\s])?'(?!\w))
  | (?P<url>[a-z]+://\S+|www\.\S+)
  | (?P<date>\d{4}-\d{1,2}-\d{1,2}(?!\w)|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}(?!\w))
  | (?P<meridiem>\d{1,2}(?::\d{2})?(?=\s?[ap]\.?m\b))
  | (?P<code>\w*[_$@\\]\w[\w.]*(?:\(\))?|\w+(?:\.\w+)*\(\)
      |\w+(?:\.[a-z_]\w*)+(?=\W|$)(?<!\bu\.s)(?<!\be\.g)(?<!\bi\.e)
      |\w+\[[^\]]*\]|[a-z]+[A-Z]\w*|\w+(?:::\w+)+|C\+\+|[CF]\#|--?[a-zA-Z]\w*(?<!\w-\w)|\.\w+)
  | (?P<number>(?<![\w)])[-−+]?\d+(?:,\d+)*(?:[.:/]\d+)*(?:st|nd|rd|th|s|x)?(?![\w]))
  | (?P<measured>(?<![\w])[-−+]?\d+(?:,\d+)*(?:\.\d+)?(?=[A-Za-z°%]{1,3}(?!\w)))
  | (?P<word>km/h|\d*[^\W\d_]+(?:['’\-.][^\W\d_]+)*\d*|\w+)
  | (?P<symbol>[^\s\w])
    """,
    re.VERBOSE | re.DOTALL,
)
#: Ends and joins of sentences: they say nothing where a blank or the end follows.
_ENDS: Final = frozenset(".,?!:;…。？！、，¿¡")
_SAID: Final = re.compile(r"\w")
_OPENS: Final = frozenset("([{")
_CLOSES: Final = frozenset(")]}")
_IS: Final = words_of("what who where when how why it that there here he she let")
_SHORT: Final = {
    "won't": ("will", "not"),
    "can't": ("can", "not"),
    "cannot": ("can", "not"),
    "let's": ("let", "us"),
    "whats": ("what", "is"),
    "whos": ("who", "is"),
    "hows": ("how", "is"),
    "wheres": ("where", "is"),
}
#: Contractions as they are typed in a hurry; what is a word of its own (cant, wont) is not among them.
_HASTY: Final = {
    f"{each}nt": f"{each}n't" for each in words_of("do does did is are was were has have should would could")
}

#: Thousands as English groups them, and lakhs: 12,345 and 1,00,000.
_GROUPED: Final = re.compile(r"-?\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d,])")
#: Bits, which are no bytes.
_BITS: Final = frozenset({"Kb", "Mb", "Gb", "Tb"})
#: Units that are no other word's abbreviation and nobody's name, however they are written. Of the others (HR,
#: MS, SEC, Miles) what is large is a name, unless a number stands before it.
_UNITS_ALONE: Final = words_of(
    """
    celsius fahrenheit kelvin dollar dollars euro euros yen franc francs rupee rupees eur gbp jpy chf inr
    utc gmt kg km cm gb mb tb kb kw kwh mph
    """
)
#: A pause before one of these, or behind one, says nothing.
_JOINED: Final = words_of("and or but please thanks")
_CALLED: Final = words_of("please hello hi hey thanks")
#: What begins with one of these, and ends before a question, may have a comma there or none.
_ADVERBIAL: Final = words_of("in on at for with after before during if when since while under as")
_ASKS: Final = QUESTION_WORDS | AUXILIARY | MODALS


class GuardToken(msgspec.Struct, frozen=True):
    """One token: `text` as it is compared. `kind` is word, number, unit, literal, symbol or pause (a mark
    between two parts of a text). `named` says that it begins large within a sentence, `owns` that a
    possessive stood on it, `sign` that it is a currency's or unit's sign, `short` that it is a `not` which
    was contracted."""

    text: str
    kind: str = "word"
    named: bool = False
    owns: bool = False
    sign: bool = False
    short: bool = False


def tokens(text: str) -> list[GuardToken]:
    """The tokens of a text, in order."""
    text = unicodedata.normalize("NFC", text).replace("’", "'").strip()
    found: list[GuardToken] = []
    begins = True
    indented = "\n " in text or "\n\t" in text
    ends = max((match.end() for match in _SAID.finditer(text)), default=0)
    depth = 0
    for match in _TOKEN.finditer(text):
        kind, raw = str(match.lastgroup), match.group()
        if kind == "line":
            # Where lines are indented it says what belongs to what.
            if indented:
                found.append(GuardToken(raw, "literal"))
            continue
        if kind == "symbol":
            depth = max(0, depth + (raw in _OPENS) - (raw in _CLOSES))
            after = text[match.end() : match.end() + 1]
            if raw in _ENDS and (not after or after.isspace() or raw in "¿¡。？！、，"):
                if raw == "!" and found and (found[-1].kind == "number" or len(found[-1].text) == 1):
                    found.append(GuardToken("!", "symbol"))  # a factorial
                elif match.end() <= ends and found and raw not in "¿¡":
                    # In brackets it is code: {1: 2} is not {1, 2}.
                    found.append(GuardToken(raw, "symbol") if depth else GuardToken(_pause(raw), "pause"))
                begins = begins or raw in ".?!:。？！"
                continue
            found.append(_symbol(raw))
        elif kind in ("number", "measured", "meridiem", "date"):
            found.append(GuardToken(_number(raw), "number"))
        elif kind in ("quoted", "url", "code"):
            found.append(GuardToken(_inner(raw) if kind == "quoted" else raw, "literal"))
        else:
            behind = bool(found) and found[-1].kind == "number"
            found += _words(raw, begins=begins, amount=behind)
        begins = False
    return _dated(_paused(found))


def _pause(raw: str) -> str:
    """A colon says what the rest is of; the others only divide."""
    return ":" if raw == ":" else ","


def _paused(found: list[GuardToken]) -> list[GuardToken]:
    """Without the pauses that may be there or not: before `and`, behind a greeting, between day and
    year, behind what stands before a question. The others divide: `eat, Grandma` is not `eat Grandma`."""
    out: list[GuardToken] = []
    for index, token in enumerate(found):
        if token.kind != "pause":
            out.append(token)
            continue
        after = found[index + 1] if index + 1 < len(found) else None
        if after is None or not out or out[-1].kind == "pause":
            continue
        before = out[-1]
        dated = before.kind == after.kind == "number" and len(before.text) <= 2 and len(after.text) == 4
        first = all(each.kind != "pause" for each in out) and out[0].text in _ADVERBIAL
        told = after.text in _JOINED or before.text in _CALLED or (first and after.text in _ASKS)
        if not (told or dated):
            out.append(token)
    return out


def _symbol(raw: str) -> GuardToken:
    unit = UNITS.get(raw)
    return GuardToken(raw, "symbol") if unit is None else GuardToken(unit, "unit", sign=True)


def _inner(raw: str) -> str:
    """What stands in quotes, and in which kind: `x` is code, "x" and 'x' are one."""
    return raw if raw.startswith("`") else f'"{raw[1:-1]}"'


def _number(raw: str) -> str:
    """Digits as they stand: version 3.10 is not 3.1."""
    return raw.replace("−", "-").lower()


def ungrouped(found: list[GuardToken]) -> list[GuardToken]:
    """English thousands without their commas: 1,000 is 1000. In other places, and in most other languages, a
    comma says something else: 1,5 kg are not 15, and 1,2,3 are three numbers."""
    if not any("," in token.text for token in found):
        return found
    return [
        GuardToken(token.text.replace(",", ""), "number")
        if token.kind == "number" and _GROUPED.match(token.text)
        else token
        for token in found
    ]


def _words(raw: str, *, begins: bool, amount: bool) -> list[GuardToken]:
    low = _HASTY.get(raw.lower(), raw.lower())
    # What is all large (US, TCP) is a name at the beginning too.
    named = (raw[0].isupper() and not begins and low != "i") or (len(raw) > 1 and raw.isupper())
    if named and raw.isupper() and low in STOP:
        # Hepatitis A, SQL's AND: a name, and no article.
        return [GuardToken(raw, named=True)]
    if raw == "WHO":
        # It asks for nobody.
        return [GuardToken(raw, named=True)]
    if raw in ("US", "U.S", "USA", "U.S.A"):
        return [GuardToken("usa", named=True)]
    if raw in _BITS:
        return [GuardToken(raw, "unit")]
    if low in _SHORT:
        return [GuardToken(each) for each in _SHORT[low]]
    if low.endswith("n't"):
        return [GuardToken(low[:-3]), GuardToken("not", short=True)]
    head, mark, tail = low.rpartition("'")
    if mark:
        if tail == "s" and head in _IS:
            return [GuardToken(head), GuardToken("is")]
        if tail == "s":
            return [GuardToken(head, named=named, owns=True)]
        whole = {"m": "am", "re": "are", "ve": "have", "ll": "will", "d": "would"}.get(tail)
        if whole is not None:
            return [GuardToken(head), GuardToken(whole)]
    if low in CARDINALS:
        return [GuardToken(CARDINALS[low], "number")]
    if low in ORDINALS:
        return [GuardToken(ORDINALS[low], "number", named=named)]
    if low in UNITS and named and not amount and low not in _UNITS_ALONE and low not in MONTHS:
        return [GuardToken(low, named=True)]
    # One capital letter is a name (C, R, A), m may be anything: only behind a number it is a unit.
    if low in UNITS and not (len(low) == 1 and raw.isupper()) and not named:
        return [GuardToken(UNITS[low], "unit")]
    if named and low in UNITS and low not in MONTHS:
        return [GuardToken(UNITS[low], "unit")]
    return [GuardToken(low, named=named)]


def _dated(found: list[GuardToken]) -> list[GuardToken]:
    """One order for what has several: `July 20 1969` is `20 July 1969`, `$20` is 20 dollars, `a day` is per
    day; and no `year` before its number."""
    out: list[GuardToken] = []
    for index, token in enumerate(found):
        after = found[index + 1] if index + 1 < len(found) else None
        before = out[-1] if out else None
        number = token.kind == "number"
        if token.text == "year" and after is not None and after.kind == "number" and len(after.text) == 4:
            continue
        if token.text == "am" and (before is None or before.kind != "number"):
            out.append(GuardToken("am"))
        elif token.text in RATES:
            out.append(GuardToken(f"per {RATES[token.text]}", "unit"))
        elif token.kind == "unit" and before is not None and before.text in PER:
            out[-1] = GuardToken(f"per {token.text}", "unit")
        elif (number and before is not None and before.sign and before.text != "%") or (
            number and len(token.text) <= 2 and _is_month(before) and not (len(out) > 1 and _is_day(out[-2]))
        ):
            out.insert(len(out) - 1, token)
        else:
            out.append(token)
    return out


def _is_month(token: GuardToken | None) -> bool:
    return token is not None and token.named and token.text in MONTHS


def _is_day(token: GuardToken) -> bool:
    return token.kind == "number" and len(token.text) <= 2
