"""Features and the score: what they see, their bounds, and how often the built-in weights are right."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from extproc.core.families import DEFAULT, NAMES, Weights, features, read, write
from extproc.core.families.difficulty import HEAD_CHARACTERS, TAIL_CHARACTERS
from extproc.core.families.train import LABELS, Example, accuracy, fit, train
from extproc.core.reading import parse
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.routes import find_route

LABELLED = Path(__file__).with_name("labelled.jsonl")


def request_of(text: str = "", **more: object) -> Request:
    facts = {"segments": (text,), "prompt_bytes": len(text.encode("utf-8", "replace")), "messages": 1, **more}
    return Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, **facts)


def named(request: Request) -> dict[str, float]:
    return dict(zip(NAMES, features(request), strict=True))


def labelled() -> list[Example]:
    """The hand-made set: 135 requests of three labels, by their features."""
    route = find_route("POST", "/v1/chat/completions")
    assert route is not None
    examples = []
    for line in LABELLED.read_text(encoding="utf-8").splitlines():
        given = json.loads(line)
        body = given.get("body") or {"messages": [{"role": "user", "content": given["prompt"]}]}
        request = parse(route, json.dumps(body).encode())
        assert isinstance(request, Request)
        examples.append((features(request), LABELS[given["label"]]))
    return examples


def test_the_built_in_weights_on_lines_that_they_were_not_fitted_to() -> None:
    """85 % of the 67 odd lines get their own level, and no simple one is taken for complex or the reverse."""
    held_out = labelled()[1::2]
    assert len(held_out) == 67
    assert accuracy(DEFAULT, held_out) >= 0.85
    for found, target in held_out:
        score = DEFAULT.score(found)
        assert not (target == 0.0 and score >= 2 / 3)
        assert not (target == 1.0 and score < 1 / 3)


def test_a_guess_would_be_right_for_a_third() -> None:
    """The set is balanced, so that the accuracy above means something."""
    targets = [target for _, target in labelled()]
    assert {target: targets.count(target) for target in set(targets)} == {0.0: 45, 0.5: 45, 1.0: 45}
    assert accuracy(Weights(0.0, (0.0,) * len(NAMES)), labelled()) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("```\nx\n```", "code"),
        ("def f(x):\n    return x", "code"),
        ("if (a[i] == b) { c(); }", "symbols"),
        ("Think step by step.", "reasoning"),
        ("Erkläre es Schritt für Schritt", "reasoning"),
        ("explique étape par étape", "reasoning"),
        ("hazlo paso a paso", "reasoning"),
        ("请证明这个", "reasoning"),
        ("докажи это", "reasoning"),
        ("a theorem on matrix eigenvalues", "maths"),
        ("求 ∑ 的值", "maths"),
        ("Translate this", "simple"),
        ("你好", "simple"),
        ("Design a bridge", "making"),
        ("Rules:\n- one\n- two\n- three", "parts"),
        ("Who? Where? When?", "parts"),
    ],
)
def test_a_cue_is_seen(text: str, feature: str) -> None:
    """In code, words, phrases, lists and several languages; the same text without it has none."""
    assert named(request_of(text))[feature] > 0.0
    assert named(request_of("The cat sat on a mat"))[feature] == 0.0


def test_what_is_not_text() -> None:
    """Tools, history, asked-for output, JSON and the whole prompt's length count each for itself."""
    plain = named(request_of("x"))
    assert plain["output"] == 0.5, "unknown"
    asked = named(
        request_of("x", tools=2, messages=9, max_new_tokens=4_096, json_output=True, prompt_bytes=40_000)
    )
    assert (asked["tools"], asked["history"], asked["output"], asked["json"], asked["length"]) == (
        0.5,
        0.5,
        1.0,
        1.0,
        1.0,
    )
    assert named(request_of("x", max_new_tokens=0))["output"] == 0.0


def test_only_the_last_message_is_read_and_of_it_both_ends() -> None:
    """A system prompt's words are not the question's; what stands in the middle is counted by its length."""
    system = "Prove each theorem step by step."
    request = request_of("", segments=(system, "hi"), prompt_bytes=len(system) + 2, messages=2)
    assert named(request)["reasoning"] == 0.0
    ends = "prove " + "a" * HEAD_CHARACTERS + " derive " + "a" * TAIL_CHARACTERS + " theorem"
    found = named(request_of(ends))
    assert (found["reasoning"], found["maths"]) == (0.5, 0.5)


def test_nothing_to_read() -> None:
    """Token ids, an empty message and what is no text have features too."""
    for request in (
        request_of(""),
        request_of("\ud800", prompt_bytes=3),
        Request(kind=RouteKind.INFO, dialect=Dialect.TGI),
    ):
        assert all(0.0 <= value <= 1.0 for value in features(request))


def test_weights_survive_their_file() -> None:
    """And what is no such file is said with what is wrong."""
    assert read(write(DEFAULT, {"by": "hand"})) == DEFAULT
    for data, said in (
        (b"{", "is no file of weights"),
        (b'{"version": 2, "bias": 0, "weights": {}}', "has version 2"),
        (b'{"version": 1, "bias": 0, "weights": {"smell": 1}}', "weighs smell; the features are length"),
        (b'{"version": 1, "bias": 1e999, "weights": {}}', "no file of weights"),
    ):
        with pytest.raises(ValueError, match=said):
            read(data)


def test_training_learns_and_is_seeded() -> None:
    """Above 80 % held out on this set; the same seed gives the same weights, another another split."""
    examples = labelled()
    first, again = train(examples, rng=Random(1)), train(examples, rng=Random(1))
    assert first == again
    assert (first.trained, first.held_out) == (101, 34)
    assert first.accuracy_held_out is not None
    assert first.accuracy_held_out > 0.8
    assert train(examples, rng=Random(2)).weights != first.weights


def test_training_wants_two_labels() -> None:
    """One label has nothing to learn."""
    with pytest.raises(ValueError, match="at least two labels"):
        train([(features(request_of("a")), 1.0)] * 3, rng=Random(1))


def test_a_fit_follows_its_examples() -> None:
    """A feature that always goes with complex weighs more than nothing, one that never varies little."""
    on, off = [0.0] * len(NAMES), [0.0] * len(NAMES)
    on[NAMES.index("tools")] = 1.0
    weights = fit([(tuple(on), 1.0), (tuple(off), 0.0)], rng=Random(1))
    assert weights.values[NAMES.index("tools")] > 1.0
    assert weights.values[NAMES.index("json")] == 0.0
    assert weights.score(on) > 2 / 3
    assert weights.score(off) < 1 / 3
