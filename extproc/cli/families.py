"""`steersman families`: trains the classifier that chooses a family's model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import click

from extproc.cli.options import examples, json_option, print_json

#: Lines of a file that are read.
EXAMPLES_MAX = 100_000
#: Mistakes of a file that are shown.
MISTAKES_SHOWN = 5

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("families", epilog=examples("steersman families train labelled.jsonl --out weights.json"))
def command() -> None:
    """Train the classifier that chooses the model of a request for a family."""


@command.command(
    "train",
    epilog=examples(
        """echo '{"label": "simple", "prompt": "What is 2 + 2?"}' >> labelled.jsonl""",
        "steersman families train labelled.jsonl --out weights.json",
        "steersman families train labelled.jsonl --out weights.json --held-out 0.3 --json",
    ),
)
@click.argument("labelled", type=_file)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The weights' file."
)
@click.option("--seed", default=1, show_default=True, help="Same seed, same examples: same weights.")
@click.option(
    "--held-out", default=0.25, show_default=True, type=click.FloatRange(0.0, 0.9), help="Share judged on."
)
@json_option
def train_command(labelled: Path, out: Path, seed: int, held_out: float, as_json: bool) -> None:
    """Fit weights to LABELLED, JSON lines, and report how often they are right on lines held out.

    A line is {"label": L, "prompt": text} or {"label": L, "body": a chat request}; L is simple, medium,
    complex, or a number from 0 to 1. Name the file in families[].weights.
    """
    from extproc.core.families import write
    from extproc.core.families.train import train

    examples, mistakes = examples_of(labelled)
    for mistake in mistakes[:MISTAKES_SHOWN]:
        click.echo(f"{labelled}:{mistake}", err=True)
    if mistakes:
        click.echo(f"{len(mistakes)} lines cannot be used; nothing is written", err=True)
        sys.exit(2)
    try:
        report = train(examples, rng=Random(seed), held_out_share=held_out)
    except ValueError as error:
        click.echo(f"{labelled}: {error}", err=True)
        sys.exit(2)
    about: dict[str, Any] = {
        "from": labelled.name,
        "seed": seed,
        "trained": report.trained,
        "held_out": report.held_out,
        "accuracy_trained": round(report.accuracy_trained, 4),
        "accuracy_held_out": None if report.accuracy_held_out is None else round(report.accuracy_held_out, 4),
    }
    out.write_bytes(write(report.weights, about))
    if as_json:
        print_json({**about, "out": str(out)})
        return
    click.echo(f"trained on {report.trained} lines: {report.accuracy_trained:.0%} of the levels right")
    if report.accuracy_held_out is not None:
        click.echo(f"held out {report.held_out} lines: {report.accuracy_held_out:.0%} right")
    click.echo(f"wrote {out}; use it with families[].weights: {out}")


def examples_of(path: Path) -> tuple[list[tuple[tuple[float, ...], float]], list[str]]:
    """A file's examples, and what is wrong with its lines as `number: message`."""
    from extproc.core.families import features
    from extproc.core.families.train import LABELS
    from extproc.core.outcome import Reject
    from extproc.core.reading import parse
    from extproc.core.routes import find_route

    route = find_route("POST", "/v1/chat/completions")
    assert route is not None
    examples: list[tuple[tuple[float, ...], float]] = []
    mistakes: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if len(examples) == EXAMPLES_MAX:
                mistakes.append(f"{number}: at most {EXAMPLES_MAX} examples are read")
                break
            try:
                given = json.loads(line)
                label = given["label"]
                target = LABELS[label] if isinstance(label, str) else float(label)
                body = given.get("body") or {"messages": [{"role": "user", "content": given["prompt"]}]}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                mistakes.append(f"{number}: {type(error).__name__}: {error}")
                continue
            request = parse(route, json.dumps(body).encode())
            if isinstance(request, Reject):
                mistakes.append(f"{number}: {request.message}")
            elif not 0.0 <= target <= 1.0:
                mistakes.append(f"{number}: the label {target} is not within 0 to 1")
            else:
                examples.append((features(request), target))
    return examples, mistakes
