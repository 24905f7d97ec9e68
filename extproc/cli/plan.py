"""`steersman plan`: what other fleets would do with recorded traffic, and the cheapest for a target.

Owns the command line; the play and the search are `extproc.lab.capacity`'s.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extproc.cli.intervals import columns
from extproc.cli.options import examples, json_option
from extproc.cli.replay import fit_option, open_log, record_options, seeds_of
from extproc.extras import need
from extproc.terminal.progress import steps

if TYPE_CHECKING:
    from extproc.lab.capacity.cheapest import FewestReplicas
    from extproc.lab.capacity.choice import FleetChoice
    from extproc.lab.capacity.figures import FleetFigures
    from extproc.lab.capacity.plays import FleetPlays
    from extproc.lab.replay.rebuild import Scene

#: Fleets that one command plays at most, beside those of the search.
FLEETS_MAX = 200


@click.command(
    "plan",
    epilog=examples(
        "steersman plan record.jsonl --replicas 2..6",
        "steersman plan record.jsonl --hardware H100,L40S --price H100=4.2 --price L40S=1.1 --cheapest",
        "steersman plan record.jsonl --max-concurrent 32,64,128 --load 1.5",
        "steersman plan record.jsonl --ttft-ms 500 --cheapest --target 0.995 --json",
        "steersman plan record.jsonl --replicas 1..8 --plot plan.png",
    ),
)
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replicas", default="", metavar="N[,N…]", help="So many: 4, 2,4,8 or 2..6.")
@click.option(
    "--hardware", default="", metavar="CARD[,CARD…]", help="On these cards: H100, L40S, H100 MIG 3g.40gb."
)
@click.option("--gpus", type=click.IntRange(1, 64), help="Cards of one replica.")
@click.option("--max-concurrent", default="", metavar="N[,N…]", help="Requests at once in one replica.")
@click.option("--prefill-tokens", default="", metavar="N[,N…]", help="max_batch_prefill_tokens.")
@click.option("--kv-scale", default="", metavar="F[,F…]", help="So many times the KV memory; 2: 8-bit cache.")
@click.option("--ttft-ms", default="", metavar="MS[,MS…]", help="Every class's target of the first token.")
@click.option("--tpot-ms", default="", metavar="MS[,MS…]", help="And of each further one.")
@click.option("--load", default="", metavar="F[,F…]", help="So many times the traffic: 1.5.")
@click.option("--price", "prices", multiple=True, metavar="CARD=PRICE", help="One replica's, an hour.")
@click.option("--cheapest", "search", is_flag=True, help="Search the fewest replicas and the cheapest kind.")
@click.option(
    "--target",
    type=click.FloatRange(0.01, 1.0),
    default=0.99,
    show_default=True,
    help="With --cheapest: the share of requests that is to be within its targets.",
)
@click.option(
    "--max-replicas",
    type=click.IntRange(1, 1_000),
    default=64,
    show_default=True,
    help="With --cheapest: no more of one kind.",
)
@record_options
@click.option("--seed", default="1..3", show_default=True, help="1, 1,2 or 1..3; intervals are over seeds.")
@click.option(
    "--requests",
    type=click.IntRange(0),
    default=5_000,
    show_default=True,
    help="The busiest so many in a row; 0: all.",
)
@fit_option
@click.option("--workers", type=click.IntRange(0, 64), default=0, help="Processes; one a core when left out.")
@json_option
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draws attainment against cost there: .png, .svg or .pdf (extra 'lab').",
)
def command(log: Path, as_json: bool, plot: Path | None, **given: Any) -> None:
    """Show what another fleet would do with recorded traffic, and the cheapest one for a target.

    LOG is what a service with 'record: {file: …}' wrote. Lists are combined: each with each. Every figure is
    simulated: the shipped scheduler over replicas with the timings that the service learned; those of a card
    that the record does not have are scaled by data sheets.
    """
    from extproc.lab.capacity.plays import FleetPlays
    from extproc.lab.replay.log import LogError

    if plot is not None:
        need("lab", by="--plot")
        if plot.suffix not in (".png", ".svg", ".pdf"):
            raise click.UsageError(f"--plot: {plot.name!r} ends in none of .png, .svg, .pdf")
    seeds = seeds_of(given["seed"])
    choices = _choices(given)
    prices = prices_of(given["prices"])
    try:
        there = scene_of(log, given, seeds[0])
        with (
            steps("planning", len(seeds) * len(choices)) as step,
            FleetPlays(there, seeds=seeds, prices=prices, workers=given["workers"], told=step) as plays,
        ):
            rows = plays.figures(choices)
            found = _cheapest(plays, choices, given) if given["search"] else []
    except LogError as error:
        raise click.ClickException(str(error)) from error
    shown = rows + [each.enough for each in found if each.enough is not None and each.enough not in rows]
    if as_json:
        click.echo(json.dumps(_plain(there, rows, found, given["target"], seeds), indent=2))
    else:
        click.echo(_told(there, rows, found, given, seeds))
    if plot is not None:
        from extproc.lab.capacity.plot import plot_fleets

        click.echo(
            f"written: {plot_fleets(plot, shown, target=given['target'] if found else None)}", err=True
        )


def scene_of(log: Path, given: dict[str, Any], seed: int) -> Scene:
    """The busiest part of a record, fitted where asked. Raises LogError."""
    from extproc.lab.capacity.choice import busiest
    from extproc.lab.replay.fit import fitted
    from extproc.lab.replay.rebuild import scene

    there = busiest(scene(open_log(log, given["begin"], given["end"]), pool=given["pool"]), given["requests"])
    return fitted(there, seed=seed) if given["fit"] else there


def _cheapest(plays: FleetPlays, choices: list[FleetChoice], given: dict[str, Any]) -> list[FewestReplicas]:
    from dataclasses import replace

    from extproc.lab.capacity.cheapest import fewest

    # The recorded kind stands beside those asked for; replicas are what is searched.
    kinds = list(dict.fromkeys(replace(each, replicas=0) for each in choices))
    return fewest(plays, kinds, target=given["target"], most=given["max_replicas"])


def _choices(given: dict[str, Any]) -> list[FleetChoice]:
    """The recorded fleet, and each combination of what was asked for. UsageError for what is no number."""
    from extproc.lab.capacity.choice import LOAD_MAX, REPLICAS_MAX, FleetChoice, known_card
    from extproc.lab.replay.log import LogError

    counts = [int(each) for each in _numbers(given["replicas"], "--replicas", 1, REPLICAS_MAX, spans=True)]
    cards = [each.strip() for each in given["hardware"].split(",") if each.strip()]
    for card in cards:
        try:
            known_card(card)
        except LogError as error:
            raise click.UsageError(f"--hardware: {error}") from error
    permits = [int(each) for each in _numbers(given["max_concurrent"], "--max-concurrent", 1, 100_000)]
    budgets = [int(each) for each in _numbers(given["prefill_tokens"], "--prefill-tokens", 1, 10_000_000)]
    scales = _numbers(given["kv_scale"], "--kv-scale", 0.01, 100.0)
    first = _numbers(given["ttft_ms"], "--ttft-ms", 1.0, 3_600_000.0)
    each_token = _numbers(given["tpot_ms"], "--tpot-ms", 0.1, 60_000.0)
    loads = _numbers(given["load"], "--load", 0.01, LOAD_MAX)
    if given["gpus"] and not cards:
        raise click.UsageError("--gpus: say of which card, with --hardware")
    nothing: list[None] = [None]
    made = [
        FleetChoice(
            replicas=n,
            hardware=card,
            gpus=given["gpus"],
            max_concurrent=most,
            prefill_budget_tokens=budget,
            kv_scale=scale,
            ttft_ms=ttft,
            tpot_ms=tpot,
            load=load,
        )
        for load, ttft, tpot, card, most, budget, scale, n in product(
            loads or [1.0],
            first or nothing,
            each_token or nothing,
            cards or [""],
            permits or nothing,
            budgets or nothing,
            scales or [1.0],
            counts or [0],
        )
    ]
    if len(made) > FLEETS_MAX:
        raise click.UsageError(
            f"{len(made)} fleets are more than one command plays; ask for {FLEETS_MAX} at most"
        )
    return list(dict.fromkeys([FleetChoice(), *made]))


def _numbers(text: str, option: str, low: float, high: float, *, spans: bool = False) -> list[float]:
    """1,2,3, and with `spans` 2..6, each within bounds."""
    found: list[float] = []
    for each in (part.strip() for part in text.split(",") if part.strip()):
        first, dots, last = each.partition("..")
        try:
            begin = float(first)
            end = float(last) if dots else begin
        except ValueError:
            begin, end = 1.0, 0.0
        whole = not isinstance(low, int) or (begin.is_integer() and end.is_integer())
        if not low <= begin <= end <= high or (dots and not spans) or not whole:
            like = "4, 2,4,8 or 2..6" if spans else f"{low:g} or a list; within {low:g} to {high:g}"
            raise click.UsageError(f"{option}: {each!r} cannot be used; write {like}")
        found += [begin + step for step in range(int(end - begin) + 1)] if dots else [begin]
    return list(dict.fromkeys(found))


def prices_of(texts: tuple[str, ...]) -> dict[str, float]:
    """Prices by card, from CARD=PRICE; a wrong usage otherwise."""
    return dict(_price(text) for text in texts)


def _price(text: str) -> tuple[str, float]:
    card, _, value = text.rpartition("=")
    try:
        price = float(value)
    except ValueError:
        price = -1.0
    if not card.strip() or not 0.0 < price < 1e6:
        raise click.UsageError(f"--price: {text!r} is no price; write H100=4.2, of one replica an hour")
    return card.strip(), price


def _plain(
    there: Scene,
    rows: list[FleetFigures],
    found: list[FewestReplicas],
    target: float,
    seeds: tuple[int, ...],
) -> dict[str, Any]:
    from extproc.lab.capacity.told import cheapest_plain, fleet_plain

    return {
        "simulated": True,
        "pool": there.pool,
        "requests": len(there.workload.arrivals),
        "seconds": there.workload.span_s,
        "seeds": list(seeds),
        "notes": list(there.notes),
        "fleets": [fleet_plain(row) for row in rows],
        "search": cheapest_plain(found, target) if found else None,
    }


def _told(
    there: Scene,
    rows: list[FleetFigures],
    found: list[FewestReplicas],
    given: dict[str, Any],
    seeds: tuple[int, ...],
) -> str:
    from extproc.lab.capacity.told import cheapest_told, table_of

    count, listed = len(there.workload.arrivals), ", ".join(map(str, seeds))
    lines = [
        f"pool {there.pool}: {count} requests in {there.workload.span_s:.0f} s; seeds {listed} (simulated)",
        *(f"  {note}" for note in there.notes),
        *(
            f"  {row.name}: {row.unfit} of {row.requests} prompts do not fit a replica, and count as missed"
            for row in rows
            if row.unfit
        ),
        "",
        *columns(table_of(rows)),
    ]
    if found:
        lines += ["", *cheapest_told(found, given["target"], given["max_replicas"])]
    return "\n".join(lines)
