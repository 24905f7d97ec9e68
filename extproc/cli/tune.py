"""`steersman tune`: better parameters for a strategy, found and judged on recorded traffic.

Owns the command line and its words; the search is `extproc.lab.search`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extproc.cli.completion import complete_strategies
from extproc.cli.intervals import number
from extproc.cli.options import examples, json_option
from extproc.cli.replay import open_log, record_options
from extproc.extras import need
from extproc.terminal.progress import steps

if TYPE_CHECKING:
    from extproc.lab.replay.rebuild import Scene
    from extproc.lab.search import Objective, SearchResult, Trial

#: The objectives' units, for people.
UNITS = {"attainment": "share of requests", "ttft_p99": "ms", "goodput": "requests/s"}


@click.command(
    "tune",
    epilog=examples(
        "steersman tune record.jsonl --trials 60",
        "steersman tune record.jsonl --strategy steer --objective ttft_p99 --out tuned.yaml",
        "steersman tune record.jsonl --limit 5000 --json | jq .gain",
    ),
)
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--strategy",
    default="",
    shell_complete=complete_strategies,
    help="Whose parameters; the recorded strategy's when left out.",
)
@click.option(
    "--trials",
    type=click.IntRange(2, 100_000),
    default=40,
    show_default=True,
    help="Sets of parameters to try.",
)
@click.option(
    "--objective",
    type=click.Choice(["attainment", "ttft_p99", "goodput"]),
    default="attainment",
    show_default=True,
    help="What is to become better.",
)
@record_options
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="The same seed finds the same."
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Seeds of the held-out part."
)
@click.option("--limit", type=click.IntRange(1), help="The first so many requests alone.")
@json_option
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Writes the settings to paste there."
)
def command(
    log: Path,
    strategy: str,
    trials: int,
    objective: Objective,
    pool: str,
    seed: int,
    seeds: int,
    begin: str,
    end: str,
    limit: int | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Search a strategy's parameters over recorded traffic, and judge them on a part that was held out.

    Every figure is simulated: the record is replayed on replicas with the timings that the service learned.
    Needs the extra 'lab' (Optuna).
    """
    need("lab", by="tuning")
    from extproc.lab.replay.fit import fitted
    from extproc.lab.replay.log import LogError
    from extproc.lab.replay.rebuild import scene
    from extproc.lab.search import axes_of, tune
    from extproc.lab.strategies import check_strategy

    try:
        if strategy:
            check_strategy(strategy, {})
            axes_of(strategy)  # before the record is read and fitted, which takes seconds
        there = fitted(scene(open_log(log, begin, end), pool=pool, limit=limit or 0), seed=seed or 1)
        with steps("searching", trials, lines=not as_json) as step:

            def told(trial: Trial) -> None:
                value = number(abs(trial.value))
                step(f"trial {trial.number + 1} of {trials}: {value} {_plain(trial.parameters)}")

            found = tune(
                there,
                strategy=strategy,
                trials=trials,
                objective=objective,
                seed=seed,
                seeds_held_out=seeds,
                told=told,
            )
    except LogError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.UsageError(f"--strategy: {error}") from error
    click.echo(json.dumps(plain_of(found, there), indent=2) if as_json else _said(found, there))
    if out is not None:
        out.write_text(yaml_of(found, there), encoding="utf-8")
        click.echo(f"written: {out}", err=True)


def plain_of(found: SearchResult, there: Scene) -> dict[str, Any]:
    """What was found as plain values."""
    gain = found.gain
    return {
        "simulated": True,
        "pool": there.pool,
        "strategy": found.strategy,
        "objective": found.objective,
        "trials": len(found.trials),
        "requests": {"searched": found.train, "held_out": found.held_out},
        "before": dict(found.before),
        "parameters": dict(found.parameters),
        "held_out": {"before": gain.before, "after": gain.after},
        "gain": {"value": gain.value, "low": gain.low, "high": gain.high, "shown": gain.shown},
        "notes": list(there.notes),
    }


def yaml_of(found: SearchResult, there: Scene) -> str:
    """The settings to paste into steersman.yaml; those from before where no gain was shown."""
    from extproc.history.surgery import written

    values = found.parameters if found.gain.shown else found.before
    lines = [f"# steersman tune: {found.objective}, {_gain(found)} on a held-out part (simulated)"]
    if not found.gain.shown:
        lines.append("# no gain was shown: these are the parameters as they were")
    lines += ["pools:", f"  - name: {written(there.pool)}", "    strategy_parameters:"]
    lines.append(
        f"      {found.strategy}: {written({name: _short(value) for name, value in values.items()})}"
    )
    return "\n".join(lines) + "\n"


def _said(found: SearchResult, there: Scene) -> str:
    gain = found.gain
    unit = UNITS[found.objective]
    lines = [
        f"pool {there.pool}, strategy {found.strategy}: {len(found.trials)} trials (simulated)",
        f"  searched on {found.train} requests, judged on the {found.held_out} after them",
        *(f"  {note}" for note in there.notes),
        "",
        f"  before  {number(gain.before)} {unit}  {_plain(found.before)}",
        f"  found   {number(gain.after)} {unit}  {_plain(found.parameters)}",
        f"  gain    {_gain(found)}",
        "",
    ]
    if not gain.shown:
        lines.append("No gain is shown on traffic that the search has not seen: keep what you have.")
    else:
        lines += ["To paste:", "", yaml_of(found, there).rstrip()]
    return "\n".join(lines)


def _gain(found: SearchResult) -> str:
    """The gain in words, with its interval."""
    gain = found.gain
    interval = f"[{number(gain.low, signed=True)}, {number(gain.high, signed=True)}]"
    return f"{number(gain.value, signed=True)} {UNITS[found.objective]} better, 95 % interval {interval}"


def _plain(values: Any) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> Any:
    """A number with as many digits as a person would write."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
