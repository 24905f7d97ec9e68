"""What of a request tells how hard it is, as numbers from 0 to 1. Cheap, and blind to meaning.

Owns the cues and their bounds. Of the text only the last message's beginning and end are read: that is
where a client says what it wants; documents between are counted by their length. Nothing here is kept.
"""

from __future__ import annotations

from math import log1p

from extproc.core.request import Request

#: So much of the last message's text is looked at, from its beginning and from its end.
HEAD_CHARACTERS, TAIL_CHARACTERS = 1_024, 512
#: Where a feature is 1: the prompt's bytes, the last message's characters, asked-for output tokens, messages,
#: tools.
LENGTH_BYTES, ASKED_CHARACTERS, OUTPUT_TOKENS, MESSAGES, TOOLS = 32_000, 2_000, 4_096, 16, 4
#: Below this a length says little.
LENGTH_BYTES_FIRST, ASKED_CHARACTERS_FIRST, OUTPUT_TOKENS_FIRST = 200, 20, 64
#: What an unset output limit counts as: it may be anything.
OUTPUT_UNKNOWN = 0.5
#: The share of code's symbols at which text is taken for code.
SYMBOL_SHARE = 0.08

#: The features, in the order in which weights stand.
NAMES = (
    "length",
    "asked",
    "code",
    "symbols",
    "reasoning",
    "maths",
    "simple",
    "making",
    "parts",
    "tools",
    "history",
    "output",
    "json",
)

_CODE, _REASONING, _MATHS, _SIMPLE, _MAKING, _PARTS = range(6)
#: Different cues at which a feature is 1.
FULL = (3.0, 2.0, 2.0, 1.0, 2.0, 4.0)

#: Single words, in the languages that most prompts come in; lower-case, as UTF-8.
_WORDS = {
    _CODE: "def return import class const function async await struct enum void static public private impl "
    "lambda null nullptr select insert join regex sql python java javascript typescript rust golang kotlin "
    "c++ bash api endpoint refactor debug traceback exception segfault compile unittest pytest thread mutex "
    "async race deadlock stack database schema query kubernetes docker algorithm",
    _REASONING: "prove proof derive derivation why justify reason reasoning deduce infer evaluate compare "
    "contrast analyse analyze analysis critique tradeoff tradeoffs trade-off trade-offs implications optimal "
    "optimise optimize strategy hypothesis counterexample argue rigorous rigorously complexity puzzle logic "
    "constraints diagnose investigate beweise beweis begründe warum vergleiche analysiere leite herleitung "
    "prouve prouver démontre démontrer pourquoi compare analyse justifie demuestra demostrar porqué compara "
    "analiza justifica dimostra perché confronta analizza prove compare analise justifique",
    _MATHS: "theorem lemma integral derivative equation equations matrix frac sum eigenvalue eigenvalues "
    "polynomial probability variance expectation convergence limit modulo prime primes integers integer "
    "inequality bayes gradient vector graph vertices differential calculus satz gleichung wahrscheinlichkeit "
    "théorème équation probabilité teorema ecuación probabilidad",
    _SIMPLE: "hello hi hey thanks thank bye translate spell capital define synonym antonym rhyme capitalize "
    "lowercase uppercase weather joke convert meaning plural hallo danke übersetze bonjour merci traduis "
    "traduire hola gracias traduce ciao grazie traduci olá obrigado traduza yes no ok",
    _MAKING: "design implement architecture build write develop plan draft essay report proposal roadmap "
    "migrate architect specification story summarize summarise rewrite outline email explain describe "
    "overview difference differences suggest create draft turn refactor review entwirf implementiere "
    "schreibe erkläre conçois implémente rédige explique décris diseña implementa escribe explica "
    "progetta scrivi spiega",
    _PARTS: "must should exactly least without ensure including include considering given then also each "
    "both handle support finally however assume requirements edge steps detail detailed muss ohne doit "
    "sans debe sin",
}
#: What is said in several words: searched for only where the word before it stands.
_PHRASES = {
    word.encode(): (phrase.encode(), kind)
    for word, phrase, kind in (
        ("step", "step by step", _REASONING),
        ("step-by-step", "step-by-step", _REASONING),
        ("schritt", "schritt für schritt", _REASONING),
        ("étape", "étape par étape", _REASONING),
        ("paso", "paso a paso", _REASONING),
        ("root", "root cause", _REASONING),
        ("pros", "pros and cons", _REASONING),
        ("what", "what is the", _SIMPLE),
        ("who", "who is", _SIMPLE),
        ("many", "how many", _SIMPLE),
    )
}
#: The same in scripts without blanks between words.
_WIDE_PHRASES = tuple(
    (phrase.encode(), kind)
    for phrases, kind in (
        (
            "证明 証明 推导 一步一步 逐步 ステップ 为什么 なぜ 分析 比较 比較",
            _REASONING,
        ),
        ("증명 단계별 докажи пошагово почему", _REASONING),
        ("∫ ∑ ∀ ∃ ≤ √ 定理 方程", _MATHS),
        ("你好 谢谢 翻译 翻訳 こんにちは ありがとう 안녕 번역 привет переведи спасибо", _SIMPLE),
        ("设计 設計 实现 実装 설계 구현 спроектируй реализуй", _MAKING),
    )
    for phrase in phrases.split()
)
_KIND_OF = {word.encode(): kind for kind, words in _WORDS.items() for word in words.split()}
#: A list's items begin with it.
_DASH = b"-"
_ALL = frozenset((*_KIND_OF, *_PHRASES, _DASH))
#: Lower-case letters and what stands in words; everything else parts them.
_SPLIT = bytes(
    c + 32 if 65 <= c <= 90 else c if c >= 128 or chr(c).isalnum() or chr(c) in "-+_" else 32
    for c in range(256)
)
_SYMBOLS = b"{}()[];=<>_|&$#\\/*"


def features(request: Request) -> tuple[float, ...]:
    """A request's features, each within 0 to 1, in the order of NAMES."""
    text = request.segments[-1] if request.segments else ""
    asked = len(text)
    if asked > HEAD_CHARACTERS + TAIL_CHARACTERS:
        text = f"{text[:HEAD_CHARACTERS]}\n{text[-TAIL_CHARACTERS:]}"
    data = text.encode("utf-8", "replace")
    hits = [0, 0, 0, 0, 0, 0]
    for word in _ALL.intersection(data.translate(_SPLIT).split()):
        if word in _KIND_OF:
            hits[_KIND_OF[word]] += 1
        elif word == _DASH:
            hits[_PARTS] += data.count(b"\n- ")
        else:
            phrase, kind = _PHRASES[word]
            hits[kind] += phrase in data.lower()
    if not text.isascii():
        for phrase, kind in _WIDE_PHRASES:
            if phrase in data:
                hits[kind] += 1
    if b"`" in data and b"```" in data:
        hits[_CODE] += 2
    hits[_PARTS] += max(0, data.count(b"?") - 1)
    code, reasoning, maths, simple, making, parts = [
        min(1.0, hit / most) for hit, most in zip(hits, FULL, strict=True)
    ]
    symbols = len(data) - len(data.translate(None, _SYMBOLS))
    limit = request.max_new_tokens
    return (
        _share(request.prompt_bytes, LENGTH_BYTES_FIRST, LENGTH_BYTES),
        _share(asked, ASKED_CHARACTERS_FIRST, ASKED_CHARACTERS),
        code,
        min(1.0, symbols / (SYMBOL_SHARE * len(data))) if data else 0.0,
        reasoning,
        maths,
        simple,
        making,
        parts,
        min(1.0, request.tools / TOOLS),
        min(1.0, max(0, request.messages - 1) / MESSAGES),
        OUTPUT_UNKNOWN if limit is None else _share(limit, OUTPUT_TOKENS_FIRST, OUTPUT_TOKENS),
        1.0 if request.json_output else 0.0,
    )


def _share(value: int, first: int, last: int) -> float:
    """0 at 0, 1 from `last` on, by the logarithm: each doubling above `first` counts the same."""
    return min(1.0, log1p(value / first) / log1p(last / first))
