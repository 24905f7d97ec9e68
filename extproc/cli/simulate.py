"""`steersman simulate`: strategies side by side on simulated replicas, from a trace or made-up traffic.

Owns the command line only; the cells are `extproc.lab.campaign`'s.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from extproc.cli.completion import complete_strategies
from extproc.cli.options import cache_options, examples, json_option
from extproc.extras import need
from extproc.terminal.progress import steps

if TYPE_CHECKING:
    from extproc.core.strategies.parameter import Value
    from extproc.lab.campaign import CampaignRun
    from extproc.lab.campaign.case import Played


@click.command(
    "simulate",
    epilog=examples(
        "steersman simulate --fleet list                # what fleets, traces and strategies there are",
        "steersman simulate --fleet 8b-straggler --strategy steer,least_work,oracle --load .5..1.1",
        "steersman simulate --trace azure-code --limit 2000 --seed 1..3 --json",
        "steersman simulate --param steer.queue_tokens=2048 --out out/",
    ),
)
@click.option(
    "--trace",
    "streams",
    multiple=True,
    default=("poisson",),
    show_default=True,
    help="A trace's file, a public trace's or a made-up workload's name; may come again. `list` names them.",
)
@click.option(
    "--fleet",
    default="8b",
    show_default=True,
    help="A named fleet, or COUNT*HARDWARE[:slowdown=3:permits=64],…; `list` shows the names. Two sites: "
    "EDGE,way=MS[:cut_s=20:others=0.5],CENTRE.",
)
@click.option(
    "--load-of", metavar="FLEET", default="", help="Load 1 is this fleet's: fleets at equal requests/s."
)
@click.option(
    "--strategy",
    "strategies",
    default="steer,envoy-least-request,oracle",
    show_default=True,
    shell_complete=complete_strategies,
    help="a,b,c or `all`; `list` shows the names.",
)
@click.option("--load", default="0.5..1.1:0.2", show_default=True, help=".9, .5,.9 or 0.5..1.2:0.1 (step).")
@click.option("--seed", default="1", show_default=True, help="1, 1,2 or 1..3.")
@click.option("--limit", type=click.IntRange(1), help="Arrivals a cell; a whole trace where not given.")
@click.option("--replicas", type=click.IntRange(1, 1000), help="The fleet's mix, with so many in all.")
@click.option(
    "--permits", type=click.IntRange(1), help="Requests that an engine takes at once; TGI's are 128."
)
@cache_options("A response cache before the fleet: what a trace repeats is answered from it.")
@click.option(
    "--param",
    "parameters",
    multiple=True,
    metavar="STRATEGY.KEY=VALUE",
    help="Such as steer.queue_tokens=2048.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Writes cells.json and plots there."
)
@json_option
@click.option("--workers", type=click.IntRange(1), help="Processes; one a core, at most one a cell.")
@click.option(
    "--traces",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="TRACES",
    help="Folder of the public traces; without it made-up ones stand in.",
)
@click.option(
    "--campaign", is_flag=True, help="Play the whole study (`make sim`): all strategies, all cells."
)
@click.option("--quick", is_flag=True, help="With --campaign: only the cells that the targets name.")
@click.option(
    "--budget-s", type=click.FloatRange(0), default=0.0, help="Start no cell after so many seconds."
)
def command(
    streams: tuple[str, ...],
    fleet: str,
    load_of: str,
    strategies: str,
    load: str,
    seed: str,
    limit: int | None,
    replicas: int | None,
    permits: int | None,
    cache: float | None,
    cache_ttl: float,
    parameters: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    workers: int | None,
    traces: Path | None,
    campaign: bool,
    quick: bool,
    budget_s: float,
) -> None:
    """Compare strategies on simulated replicas.

    Every figure is simulated; timings from splitwise-sim / vidur. Load 1 is what the fleet can bear in the
    mean. The same seed gives the same bytes.
    """
    from extproc.lab.campaign import play_all
    from extproc.lab.campaign.__main__ import OUT, teller
    from extproc.lab.campaign.__main__ import campaign as play_campaign
    from extproc.lab.campaign.streams import stood_in, traces_folder
    from extproc.lab.campaign.tiers import placed_line
    from extproc.lab.report import table, to_json
    from extproc.lab.workload import WorkloadError
    from extproc.sim.world import FleetError, parse_fleet

    if "list" in (*streams, fleet, strategies):
        _list()
        return
    folder = traces_folder(traces)
    if campaign:
        click.echo(
            play_campaign(
                out=out or OUT,
                traces=folder,
                quick=quick,
                seeds=_seeds(seed if _written("seed") else "1..3"),
                workers=workers,
                budget_s=budget_s,
                limit=limit or 0,
            )
        )
        return
    if quick:
        raise click.UsageError(
            "--quick goes with --campaign; add it, or choose cells with --load and --limit"
        )
    if out is not None:
        need("lab", by="--out (its plots)", instead="leave it out, with --json > cells.json")
    cases = [
        replace(case, cache_mib=cache or 0.0, cache_ttl_s=cache_ttl, load_of=load_of)
        for case in _cases(streams, fleet, strategies, load, seed, limit, replicas, permits, parameters)
    ]
    if load_of:
        try:
            parse_fleet(load_of)
        except FleetError as error:
            raise click.UsageError(f"--load-of: {error}") from error
    for stream in streams:
        if (made := stood_in(stream, folder)) is not None:
            click.echo(f"no trace {stream} in {folder}: {made} stands in (set TRACES)", err=True)
    try:
        with steps("simulating", len(cases)) as step:

            def told(played: Played, done: int, of: int, stored: bool) -> None:
                if sys.stderr.isatty():
                    step(f"{played.cell.workload} {played.cell.load:g} {played.cell.strategy}")
                else:
                    say(played, done, of, stored)

            say = teller()
            results, left = play_all(
                cases, folder, workers=workers, budget_s=budget_s, progress=told if len(cases) > 1 else None
            )
    except WorkloadError as error:
        raise click.UsageError(f"--trace: {error}") from error
    except FleetError as error:
        raise click.UsageError(f"--fleet: {error}") from error
    if left:
        click.echo(f"left out, the time given was over: {len(left)} of {len(cases)} cells", err=True)
    if not results:
        sys.exit(1)
    cells = [one.cell for one in results]
    if as_json:
        click.echo(to_json(cells), nl=False)
    else:
        table(cells)
    for one in results:
        if one.placed:
            click.echo(placed_line(one), err=True)
    if out is not None:
        from extproc.lab.campaign.account import first_tokens
        from extproc.lab.campaign.play import slo_of
        from extproc.lab.report import plots

        out.mkdir(parents=True, exist_ok=True)
        (out / "cells.json").write_text(to_json(cells))
        plots(
            out,
            cells,
            ttft_ms=first_tokens(results),
            ttft_slo_ms=slo_of(fleet).ttft_ns / 1e6,
            emphasis="steer",
        )
        click.echo(f"written: {out}", err=True)


def _cases(
    streams: tuple[str, ...],
    fleet: str,
    strategies: str,
    load: str,
    seed: str,
    limit: int | None,
    replicas: int | None,
    permits: int | None,
    parameters: tuple[str, ...],
) -> list[CampaignRun]:
    """Every cell asked for; a mistake names its option."""
    from extproc.lab.campaign import CampaignRun, CaseError, load_values
    from extproc.lab.campaign.case import check_strategy, parameter_of
    from extproc.lab.campaign.streams import check_stream
    from extproc.sim.world import FleetError

    option = "--param"
    try:
        given: dict[str, dict[str, Value]] = {}
        for text in parameters:
            strategy, key, value = parameter_of(text)
            given.setdefault(strategy, {})[key] = value
        option = "--strategy"
        names = _every() if strategies == "all" else tuple(strategies.split(","))
        for name in names:
            check_strategy(name.strip(), {})
        option = "--param"
        for name, own in given.items():
            check_strategy(name, own)
            if name not in names:
                raise CaseError(f"{name} is not played; add it to --strategy")
        option = "--load"
        loads = load_values(load)
        option = "--trace"
        for stream in streams:
            check_stream(stream)
    except CaseError as error:
        raise click.UsageError(f"{option}: {error}") from error
    cases = [
        CampaignRun(
            stream=stream,
            fleet=fleet,
            load=at,
            strategy=name.strip(),
            seed=one,
            limit=limit or 0,
            replicas=replicas or 0,
            permits=permits or 0,
            parameters=tuple(sorted(given.get(name.strip(), {}).items())),
        )
        for one in _seeds(seed)
        for stream in streams
        for at in loads
        for name in names
    ]
    try:
        _ = cases[0].simulated_fleet
    except FleetError as error:
        raise click.UsageError(
            f"{'--replicas' if 'cannot have' in str(error) else '--fleet'}: {error}"
        ) from error
    return cases


def _seeds(text: str) -> tuple[int, ...]:
    from extproc.lab.campaign import CaseError, seed_values

    try:
        return seed_values(text)
    except CaseError as error:
        raise click.UsageError(f"--seed: {error}") from error


def _written(name: str) -> bool:
    """Whether the user wrote an option."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def _every() -> tuple[str, ...]:
    """Ours and others', then what packages add."""
    from extproc.config.plugins import strategy_names
    from extproc.lab.campaign.plan import STRATEGIES

    return (*STRATEGIES, *strategy_names())


def _list() -> None:
    from extproc.lab.campaign import SYNTHETIC, TRACES
    from extproc.sim.world.fleets import NAMED

    click.echo("public traces: " + ", ".join(TRACES))
    click.echo("made-up workloads: " + ", ".join(SYNTHETIC))
    click.echo("strategies: " + ", ".join(_every()))
    for name, spec in NAMED.items():
        click.echo(f"fleet {name}: {spec}")


if __name__ == "__main__":
    command()
