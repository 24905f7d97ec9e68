"""`steersman replay`: what other choices would have done with recorded traffic.

Owns the command line and its tables; the replay is `extproc.lab.replay`'s.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extproc.cli.completion import complete_pools, complete_strategies
from extproc.cli.intervals import columns, number, said
from extproc.cli.options import cache_options, examples, json_option
from extproc.terminal.progress import steps

if TYPE_CHECKING:
    from extproc.core.strategies.parameter import Value
    from extproc.lab.replay.compare import Comparison
    from extproc.lab.replay.log import Log
    from extproc.lab.replay.play import Choice
    from extproc.lab.report.cells import MeanInterval


def record_options(command: Any) -> Any:
    """Which part of a record: --pool, --from and --to, for every command that plays one."""
    for option in reversed(
        (
            click.option(
                "--pool",
                default="",
                shell_complete=complete_pools,
                help="The pool; the one with most requests when left out.",
            ),
            click.option(
                "--from",
                "begin",
                default="",
                metavar="TIME",
                help="2026-01-31T12:00:00Z, or +90 (s from the first).",
            ),
            click.option("--to", "end", default="", metavar="TIME", help="The same; itself left out."),
        )
    ):
        command = option(command)
    return command


fit_option = click.option(
    "--fit/--no-fit", default=True, show_default=True, help="Fit the timings to the times on record."
)


@click.command(
    "replay",
    epilog=examples(
        "steersman replay record.jsonl                  # does the replay agree with what was measured?",
        "steersman replay record.jsonl --strategy least_work,steer --seed 1..5",
        "steersman replay record.jsonl --replicas -2 --weight acme=3 --json",
        "steersman replay record.jsonl --cache 256       # what a response cache would have saved",
        "steersman replay record.jsonl --from +0 --to +600 --param steer.queue_tokens=2048 --out out/",
    ),
)
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--strategy",
    "strategies",
    default="",
    shell_complete=complete_strategies,
    help="a,b,c: what to try; the recorded one when left out.",
)
@click.option(
    "--param",
    "parameters",
    multiple=True,
    metavar="STRATEGY.KEY=VALUE",
    help="Such as steer.queue_tokens=2048; on top of the recorded ones.",
)
@click.option("--weight", "weights", multiple=True, metavar="TENANT=WEIGHT", help="A tenant's weight.")
@click.option("--replicas", type=int, default=0, metavar="N", help="So many fewer or more: -2, +1.")
@record_options
@click.option("--seed", default="1..5", show_default=True, help="1, 1,2 or 1..5; intervals are over seeds.")
@click.option("--limit", type=click.IntRange(1), help="The first so many requests alone.")
@cache_options("What a response cache of so many MiB would have saved; the record must have 'repeats'.")
@click.option(
    "--cache-also",
    type=click.Choice(("sampled", "tools")),
    multiple=True,
    help="Cache these requests too, as tenants[].cache may.",
)
@fit_option
@json_option
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Writes replay.json and replay.txt there."
)
def command(
    log: Path,
    strategies: str,
    parameters: tuple[str, ...],
    weights: tuple[str, ...],
    replicas: int,
    pool: str,
    seed: str,
    begin: str,
    end: str,
    limit: int | None,
    cache: float | None,
    cache_ttl: float,
    cache_also: tuple[str, ...],
    fit: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Replay recorded traffic on simulated replicas, as recorded and with other choices.

    LOG is what a service with 'record: {file: …}' wrote; the files put aside beside it are read too. First
    the replay under the recorded strategy stands beside what was measured. Every other figure is simulated.
    """
    from extproc.cli.replay_cache import plain_saving, told_saving
    from extproc.lab.replay.answers import saving
    from extproc.lab.replay.compare import compare
    from extproc.lab.replay.fit import fitted
    from extproc.lab.replay.log import LogError
    from extproc.lab.replay.rebuild import scene
    from extproc.sim.answers import CacheSize

    seeds = seeds_of(seed)
    try:
        read = open_log(log, begin, end)
        there = scene(read, pool=pool, limit=limit or 0)
        choices = _choices(there.strategy, strategies, parameters, weights, replicas, there.workload.tenants)
        if replicas:
            there.replicas(replicas)
        if fit:
            there = fitted(there, seed=seeds[0])
        with steps("replaying", len(seeds) * (1 + len(choices))) as step:
            comparison = compare(
                there, choices, seeds=seeds, told=lambda choice, seed: step(f"{choice}, seed {seed}")
            )
        saved = None
        if cache is not None:
            size = CacheSize(bytes_max=round(cache * 1024 * 1024), ttl_s=cache_ttl)
            saved = saving(there, size, seeds=seeds, allowed=cache_also)
    except LogError as error:
        raise click.ClickException(str(error)) from error
    plain = plain_of(comparison, read)
    told = _told(comparison, read)
    if saved is not None:
        plain["cache"] = plain_saving(saved)
        told += "\n" + "\n".join(told_saving(saved))
    click.echo(json.dumps(plain, indent=2) if as_json else told)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "replay.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        (out / "replay.txt").write_text(told + "\n", encoding="utf-8")
        click.echo(f"written: {out}", err=True)


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds from 1, 1,2 or 1..5; a wrong usage otherwise."""
    from extproc.lab.campaign import CaseError, seed_values

    try:
        return seed_values(text)
    except CaseError as error:
        raise click.UsageError(f"--seed: {error}") from error


def open_log(path: Path, begin: str, end: str) -> Log:
    """The record between two times. Raises LogError."""
    from extproc.lab.replay.log import read

    log = read(path)
    first_ms = log.rows[0].at_ms if log.rows else 0.0
    return log.between(_time(begin, "--from", first_ms), _time(end, "--to", first_ms))


def _time(text: str, option: str, first_ms: float) -> float | None:
    if not text:
        return None
    try:
        if text.startswith("+"):
            return first_ms + 1e3 * float(text[1:].removesuffix("s"))
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{option}: {text!r} is no time; write 2026-01-31T12:00:00Z, or +90 for seconds from the first"
        ) from None
    if at.tzinfo is None:
        raise click.UsageError(f"{option}: {text!r} lacks its zone; write {text}Z for UTC")
    return at.timestamp() * 1e3


def _choices(
    recorded: str,
    strategies: str,
    parameters: tuple[str, ...],
    weights: tuple[str, ...],
    replicas: int,
    tenants: tuple[str, ...],
) -> list[Choice]:
    """A choice for each strategy, with all the rest changed in each; none when nothing is asked for."""
    from extproc.lab.campaign.case import CaseError, parameter_of
    from extproc.lab.replay.log import LogError
    from extproc.lab.replay.play import Choice, check

    given: dict[str, dict[str, Value]] = {}
    for text in parameters:
        try:
            strategy, key, value = parameter_of(text)
        except CaseError as error:
            raise click.UsageError(f"--param: {error}") from error
        given.setdefault(strategy, {})[key] = value
    weighed = dict(_weight(text, tenants) for text in weights)
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    if not names and not (given or weighed or replicas):
        return []
    names = names or [recorded]
    for name in given:
        if name not in names:
            raise click.UsageError(f"--param: {name} is not played; add it to --strategy")
    also = [f"{tenant}={weight:g}" for tenant, weight in weighed.items()]
    also += [f"{replicas:+d} replicas"] if replicas else []
    choices = []
    for name in names:
        own = given.get(name, {})
        try:
            check(name, own)
        except LogError as error:
            raise click.UsageError(f"{'--param' if own else '--strategy'}: {error}") from error
        said = " ".join([name, *(f"{key}={value}" for key, value in own.items()), *also])
        choices.append(Choice(name=said, strategy=name, parameters=own, weights=weighed, replicas=replicas))
    return choices


def _weight(text: str, tenants: tuple[str, ...]) -> tuple[str, float]:
    from extproc.observe.record import tenant_hash

    name, _, value = text.rpartition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = 0.0
    if not name or not 0.0 < weight < 1e6:
        raise click.UsageError(f"--weight: {text!r} is no weight; write TENANT=2")
    for known in (name, tenant_hash(name)):
        if known in tenants:
            return known, weight
    shown = ", ".join(tenants[:20])
    raise click.UsageError(f"--weight: tenant {name!r} asked for nothing then; there are {shown}")


def plain_of(comparison: Comparison, log: Log) -> dict[str, Any]:
    """The comparison as plain values."""
    there = comparison.scene
    return {
        "simulated": True,
        "pool": there.pool,
        "requests": len(there.rows),
        "replicas": len(there.machines),
        "strategy": there.strategy,
        "seeds": list(comparison.seeds),
        "log": {"torn": log.torn, "dropped": log.dropped, "twice": log.twice, "beyond": log.beyond},
        "notes": list(there.notes),
        "measured_and_replayed": [
            {"figure": each.figure, "measured": each.measured, "replayed": _interval(each.replayed)}
            for each in comparison.fidelity
        ],
        "choices": [
            {
                "name": column.choice.name,
                "values": {name: _interval(value) for name, value in column.values.items()},
                "differences": {name: _interval(value) for name, value in column.differences.items()},
            }
            for column in comparison.columns
        ],
    }


def _interval(value: MeanInterval | None) -> dict[str, float | None] | None:
    return None if value is None else {"mean": value.mean, "half": value.half}


def _told(comparison: Comparison, log: Log) -> str:
    there = comparison.scene
    lines = [
        f"pool {there.pool}: {len(there.rows)} requests in {there.workload.span_s:.0f} s",
        f"  {len(there.machines)} replicas, strategy {there.strategy}; seeds {_listed(comparison.seeds)}",
        *(f"  {note}" for note in there.notes),
    ]
    wrong = {
        "could not be read (cut off)": log.torn,
        "were dropped by the service": log.dropped,
        "were recorded by two services": log.twice,
        "were left out as too many": log.beyond,
    }
    lines += [f"  {count} lines {what}" for what, count in wrong.items() if count]
    lines += ["", "Streamed requests, measured and replayed as recorded (simulated):", ""]
    table = [["", "measured", "replayed", "off by"]]
    for each in comparison.fidelity:
        off = "-"
        if each.measured and each.replayed is not None:
            off = f"{each.replayed.mean / each.measured - 1:+.0%}"
        table.append([each.figure, number(each.measured), said(each.replayed), off])
    lines += columns(table)
    if len(comparison.columns) > 1:
        lines += ["", "Simulated; behind a change stands half of its 95 % interval over seeds:"]
    base = comparison.columns[0]
    for column in comparison.columns[1:]:
        lines += ["", f"{column.choice.name}, against as recorded:", ""]
        table = [["", "as recorded", "changed", "difference"]]
        table += [
            [name, said(base.values[name]), said(column.values[name]), said(value, signed=True)]
            for name, value in column.differences.items()
        ]
        lines += columns(table)
    return "\n".join(lines)


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))
