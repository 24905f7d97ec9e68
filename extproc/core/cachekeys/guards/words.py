"""What is known of English words, for the guards: which say nothing of their own, which say the same.

Owns the tables. A word that stands in none of them means itself alone. Two words are one here only where they
can be exchanged in nearly every question: what is in doubt is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


def words_of(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def words_in_order(text: str) -> list[str]:
    """The words of a text, as they stand."""
    return text.split()


def _table(groups: str) -> dict[str, str]:
    """Each word of a line is its first one."""
    return {word: line.split()[0] for line in groups.strip().splitlines() for word in line.split()}


#: They say nothing of their own. Of prepositions only those whose place another one would take.
STOP: Final = words_of(
    """
    a an the of in and that there these those this actually really located is are am be
    been being was were
    """
)
#: One of these is in nearly every English question; none is a common word of another language.
ENGLISH: Final = words_of(
    """
    the of and for with to is are what which who whom how why when where does do did can could should
    would my your you it i me from solve calculate compare about recommend suggest compose explain write
    list name give tell show define describe translate
    convert
    """
)
#: Common words of other languages that are none in English.
FOREIGN: Final = words_of(
    """
    ist der das und nicht wie wer wo warum wann welche welcher ein eine einen ich sie wir mit von zu im
    est le la les des du et une pas qui que quoi quel quelle comment pourquoi combien où je vous nous
    dans el los las una por para cómo qué cuál quién dónde cuándo y del se il lo gli che chi perché dove
    sind hat haben kann auf aus bei nach mit auch oder wenn mir mich uns gibt kostet avec sont fait tiene
    naar ook maar mijn zijn thee koffie quando di è são não como qual onde het een niet wat hoe waarom
    van och är inte vad hur
    """
)

ARTICLES: Final = frozenset({"a", "an", "the"})
#: They are words of other languages too: of a text that has no other English one nothing is left out.
SHARED: Final = words_of("a an in is was am of me do to i it list name and are be that")
#: Before a unit of time they say which.
SHOWN: Final = words_of("this that these those")
#: `of` behind one of these is a part of it: to hear of somebody is not to hear him.
WITH_OF: Final = words_of(
    """
    hear heard hears think thought know knew known knows dream dreamed approve approved become became
    becomes speak spoke complain beware ask asked learn learned read talk talked tell told
    """
)
#: A `Python parser` is one for Python, and may be written in anything.
MADE_FOR: Final = words_of(
    """
    parser parsers compiler compilers interpreter interpreters linter linters formatter formatters lexer
    tokenizer debugger editor ide client driver drivers wrapper plugin plugins extension emulator
    """
)
#: At the end of a question they belong to its verb: "who did he sell to" is not "who did he sell".
STRANDED: Final = frozenset({"in", "of", "to", "into"})
#: `in` behind one of these is a part of it: to break in is not to break.
WITH_IN: Final = words_of(
    """
    log sign break check believe fill hand turn cash come came go get let move bring brought give kick
    plug tune drop trade fit step opt take took call phone dial write stay set put type key lock rub
    succeed succeeded engage engaged join joined count share major follow followed end ended
    """
)
PRONOUNS: Final = words_of("i you he she it we they")
#: They begin a question.
QUESTION_WORDS: Final = words_of("what which who whom whose when where why how")
#: `on` before them says nothing.
DAYS: Final = words_of(
    """
    monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays
    fridays saturdays sundays
    """
)
#: The first of them in a question says nothing.
DOES: Final = frozenset({"do", "does", "did"})
#: Their past is as their present: who does it and to whom it is done differ by "is" alone.
UNCHANGED: Final = words_of(
    """
    cut put hurt hit let set shut beat cost read spread split bet bid burst cast quit rid
    """
)
WAS: Final = frozenset({"was", "were"})
#: They are of a passive or of another verb, and never the whole of a question's auxiliary.
NOT_FINITE: Final = frozenset({"be", "been", "being"})
#: They make a question of a sentence.
HELPING: Final = frozenset({"is", "are", "am", "was", "were", "do", "does", "did"})
BEING: Final = frozenset({"is", "are", "am", "be", "been", "being"})
PAST: Final = frozenset({"was", "were", "did", "had"})
PRESENT: Final = frozenset({"is", "are", "am", "do", "does", "has", "have"})
FUTURE: Final = frozenset({"will", "shall"})
AUXILIARY: Final = PAST | PRESENT | FUTURE
MODALS: Final = frozenset({"can", "could", "may", "might", "must", "should", "would", "ought", "need"})

NEGATIONS: Final = words_of(
    """
    not no never without nor none nobody nothing neither nowhere fail fails failed avoid avoids lack
    lacks lacking except unless unable hardly rarely seldom stop stopped refuse instead excluding
    """
)
QUANTIFIERS: Final = words_of(
    """
    all some any every each both either only most many much few several least ever always often
    sometimes usually half quarter whole entire another other same everyone everybody someone somebody
    anyone anybody everything something anything once twice again still yet already
    """
)
#: What opposes another word, or orders two things. The endings -er and -est count as well.
COMPARATIVES: Final = words_of(
    """
    more less than before after above below over under up down out off inside outside into between
    against from to by until till since during within through across toward towards versus vs near far
    next last previous first latest newest past ago now today yesterday tomorrow early late left right
    top bottom front back north south east west big small large long short high low tall deep wide
    narrow hot cold warm cool old young new fast slow strong weak good bad best worst better worse min
    max minimum maximum upper lower increase decrease raise reduce gain lose rise fall grow shrink open
    close start end begin finish add remove create delete enable disable allow deny accept decline
    import export buy sell lend borrow give take push pull send receive upload download encrypt decrypt
    mount unmount upgrade downgrade ascending descending pro con pros cons advantage disadvantage cause
    cure safe unsafe legal illegal cheap expensive rich poor hard soft easy difficult true false
    positive negative win loss profit input output soft like unlike as or
    """
)
#: Words that end as comparatives do, and are none.
NOT_COMPARED: Final = words_of(
    """
    water paper computer number letter power summer winter router printer server user order layer player
    weather mother father brother sister teacher daughter docker customer folder answer header footer
    river butter dinner offer container transformer transistor member buffer pointer other another
    register dinner refrigerator forest test west guest interest request rest best harvest chest nest
    contest protest invest digest suggest burger tiger spider flower tower shower sugar center finger
    corner
    """
)

_UNITS: Final = """
mm millimeter millimeters millimetre millimetres
cm centimeter centimeters centimetre centimetres
m meter meters metre metres
km kilometer kilometers kilometre kilometres kms
mile miles mi
inch inches
foot feet ft
yard yards yd
gram grams g gramme grammes
kg kilogram kilograms kilo kilos kgs
lb lbs pound pounds
oz ounce ounces
ton tons
tonne tonnes
liter liters litre litres l
ml milliliter milliliters millilitre millilitres
gallon gallons
cup cups
celsius centigrade
fahrenheit
kelvin
second seconds sec secs s
minute minutes min mins
hour hours hr hrs h
day days
week weeks
month months
year years
decade decades
century centuries
ms millisecond milliseconds
kb kilobyte kilobytes
mb megabyte megabytes
gb gigabyte gigabytes
tb terabyte terabytes
mph
kmh km/h kph
watt watts w
kw kilowatt kilowatts
kwh
degree degrees °
% percent percentage
dollar dollars $ usd
euro euros € eur
sterling £ gbp
yen ¥ jpy
franc francs chf
rupee rupees ₹ inr
cent cents
am a.m.
pm p.m.
bc
ad
utc
gmt
"""
#: Every spelling of a unit, a currency or a part of a time, and the one that is compared.
UNITS: Final[Mapping[str, str]] = _table(_UNITS)

#: One word for "a" or "per" and its unit.
RATES: Final[Mapping[str, str]] = {
    "daily": "day",
    "weekly": "week",
    "monthly": "month",
    "yearly": "year",
    "hourly": "hour",
}
#: Before a unit they say: for each.
PER: Final = frozenset({"a", "an", "per", "each", "every"})

_SAME: Final = """
fix repair
tire tyre
tires tyres
large big
largest biggest
small little
wifi wi-fi
golang go
film movie
films movies
recommend suggest
summarise summarize summary summarises summarizes
colour color
colours colors
benefits advantages
benefit advantage
parcel package
buy purchase
obtain get
reduce lower
increase raise
child kid
children kids
car automobile
cars automobiles
frequency frequently
write compose
calculate compute
doctor physician
uk u.k.
have has
with using
within inside
ship deliver
author writer
height tall
length long
age old
distance far
speed fast quickly
weight heavy weigh weighs
depth deep
width wide
people humans
phone telephone
folder directory
folders directories
repo repository
repos repositories
organise organize
analyse analyze
centre center
email e-mail
emails e-mails
bike bicycle
bikes bicycles
"""
#: What may stand for one another in nearly every question; the first of a line is compared.
SAME: Final[Mapping[str, str]] = _table(_SAME)
#: Relations of one thing: "the capital of France" and "France's capital" are one, in whatever order.
ATTRIBUTES: Final = words_of(
    """
    height length age speed weight depth width capital population currency symbol meaning symptoms
    plural opposite author temperature duration area
    """
)
#: How + one of these asks for a measure.
MEASURES: Final[Mapping[str, str]] = {
    "tall": "height",
    "high": "height",
    "long": "length",
    "old": "age",
    "fast": "speed",
    "heavy": "weight",
    "deep": "depth",
    "wide": "width",
    "often": "frequency",
    "frequently": "frequency",
}
#: Where a question is asked of only one of these, it may stand anywhere in it.
SETTINGS: Final = words_of(
    """
    python java javascript typescript rust ruby go haskell kotlin swift php perl scala sql git linux
    windows macos excel docker kubernetes bash css html
    """
)
#: Forms in -s that are other words than the ones without.
NOT_PLURAL: Final = words_of(
    """
    news physics mathematics politics economics goods glasses customs arms series species less means
    always perhaps thanks yes us plus versus gas bus class pass process access address loss process this
    its does was is has as jeans pants scissors lens mass gross
    damages securities rights manners contents savings earnings terms woods aids compasses
    premises spirits forces arms times letters braces spectacles odds stakes minutes
    quarters headquarters outskirts belongings surroundings proceeds funds
    """
)
#: "How do you …" with one of these asks how anybody does it.
TAUGHT: Final = words_of(
    """
    boil cook make bake fry tie say spell pronounce write draw calculate convert build install fix
    repair clean remove sort reverse read
    """
)
MONTHS: Final = words_of(
    """
    january february march april may june july august september october november december
    """
)
_TO_TWENTY: Final = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty
"""
_TENS: Final = "thirty forty fifty sixty seventy eighty ninety"
CARDINALS: Final[Mapping[str, str]] = {
    **{word: str(number) for number, word in enumerate(_TO_TWENTY.split())},
    **{word: str(10 * number) for number, word in enumerate(_TENS.split(), start=3)},
}
#: As 3rd is written: not first, which orders, and not second, which is a unit.
ORDINALS: Final[Mapping[str, str]] = {
    "third": "3rd",
    **{
        word: f"{number}th"
        for number, word in enumerate(
            words_in_order(
                """
                fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
                fifteenth sixteenth seventeenth eighteenth nineteenth twentieth
                """
            ),
            start=4,
        )
    },
}
NUMBER_WORDS: Final = words_of(
    """
    dozen dozens hundred thousand million billion trillion third fourth fifth sixth seventh eighth ninth
    tenth second double triple twice half quarter
    """
)
