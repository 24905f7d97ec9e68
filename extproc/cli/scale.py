"""`steersman scale`: replicas wanted and had, and why; what was; what binds a pool.

Owns the command lines. What is said comes from the service (Scaling), or for simulated advice from
`extproc.lab.capacity`; the tables are `extproc.terminal.scale`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from extproc.cli.completion import complete_pools
from extproc.cli.intervals import columns
from extproc.cli.options import examples, fail, json_option, print_json
from extproc.cli.plan import prices_of, scene_of
from extproc.cli.replay import seeds_of
from extproc.cli.status import address_option
from extproc.cli.tenants import asked
from extproc.terminal.progress import steps

_pool = click.argument("pool", default="", shell_complete=complete_pools)


@click.group("scale", epilog=examples("steersman scale status", "steersman scale explain chat"))
def command() -> None:
    """Show how many replicas pools should have, and why; advise on larger or smaller ones."""


@command.command(
    "status",
    epilog=examples("steersman scale status", "steersman scale status chat --json | jq '.pools[0].wanted'"),
)
@_pool
@address_option
@json_option
def status_command(pool: str, address: str | None, as_json: bool) -> None:
    """Show load, forecast, and replicas wanted and had of each pool that scales, or of POOL.

    Exits 1 when no service answers, or no pool scales.
    """
    found = _ask(address, {"what": "status", "pool": pool})
    if as_json:
        print_json(found)
        return
    from extproc.terminal.scale import status_lines

    click.echo("\n".join(status_lines(found, columns)))


@command.command(
    "history",
    epilog=examples("steersman scale history chat", "steersman scale history chat --points 500 --json"),
)
@_pool
@address_option
@click.option(
    "--points",
    type=click.IntRange(1, 1_000),
    default=24,
    show_default=True,
    help="So many, evenly over what is kept (the last 2,880 plans of a pool).",
)
@json_option
def history_command(pool: str, address: str | None, points: int, as_json: bool) -> None:
    """Show what was forecast, wanted and had, of each pool that scales, or of POOL."""
    found = _ask(address, {"what": "history", "pool": pool, "points": points})
    if as_json:
        print_json(found)
        return
    from extproc.terminal.scale import history_lines

    click.echo("\n".join(history_lines(found, columns)))


@command.command("explain", epilog=examples("steersman scale explain", "steersman scale explain chat"))
@_pool
@address_option
@json_option
def explain_command(pool: str, address: str | None, as_json: bool) -> None:
    """Show each term that made the number: forecast, need, one fewer and one more, bounds, schedule."""
    found = _ask(address, {"what": "explain", "pool": pool})
    if as_json:
        print_json(found)
        return
    from extproc.terminal.scale import explain_lines

    click.echo("\n".join(explain_lines(found, columns)))


@command.command(
    "advice",
    epilog=examples(
        "steersman scale advice                        # what binds each pool of the running service",
        "steersman scale advice chat --record record.jsonl --price H100=4.2",
        "steersman scale advice chat --record record.jsonl --hardware H200 --vpa",
    ),
)
@_pool
@address_option
@click.option(
    "--record",
    "log",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Simulate changes on this recorded traffic; no service is asked.",
)
@click.option(
    "--target",
    type=click.FloatRange(0.01, 1.0),
    default=0.99,
    show_default=True,
    help="With --record: the share of requests that is to be within its targets.",
)
@click.option(
    "--hardware", default="", metavar="CARD[,CARD…]", help="With --record: try these cards, and no others."
)
@click.option("--price", "prices", multiple=True, metavar="CARD=PRICE", help="One replica's, an hour.")
@click.option("--seed", default="1..3", show_default=True, help="1, 1,2 or 1..3; gains are over seeds.")
@click.option(
    "--requests",
    type=click.IntRange(0),
    default=5_000,
    show_default=True,
    help="With --record: the busiest so many in a row; 0: all.",
)
@click.option("--workers", type=click.IntRange(0, 64), default=0, help="Processes; one a core when left out.")
@click.option("--vpa", is_flag=True, help="With --record: print it as a VerticalPodAutoscaler's status.")
@click.option("--container", default="engine", show_default=True, help="With --vpa: the container's name.")
@click.option("--namespace", default="", help="With --vpa: its namespace.")
@json_option
def advice_command(pool: str, address: str | None, log: Path | None, as_json: bool, **given: Any) -> None:
    """Show which resource each pool, or POOL, is bound by; with --record what changes would do, simulated.

    Nothing is ever applied. A gain counts as shown where its 95 % interval over seeds is above zero.
    """
    if log is not None:
        _simulated(pool, log, given, as_json=as_json)
        return
    if given["vpa"]:
        raise click.UsageError("--vpa: a recommendation is simulated; give --record")
    found = _ask(address, {"what": "advice", "pool": pool})
    if as_json:
        print_json(found)
        return
    from extproc.terminal.scale import bound_lines

    click.echo("\n".join(bound_lines(found, columns)))


def _simulated(pool: str, log: Path, given: dict[str, Any], *, as_json: bool) -> None:
    import msgspec

    from extproc.core.scaling.advice import recommendation
    from extproc.lab.capacity.advise import simulated_advice
    from extproc.lab.capacity.choice import known_card
    from extproc.lab.capacity.plays import FleetPlays
    from extproc.lab.replay.log import LogError
    from extproc.terminal.scale import advice_lines

    seeds, prices = seeds_of(given["seed"]), prices_of(given["prices"])
    cards = [each.strip() for each in given["hardware"].split(",") if each.strip()]
    try:
        for card in cards:
            known_card(card)
    except LogError as error:
        raise click.UsageError(f"--hardware: {error}") from error
    try:
        there = scene_of(
            log, {"begin": "", "end": "", "pool": pool, "requests": given["requests"], "fit": True}, seeds[0]
        )
        with (
            steps("simulating", 0) as step,
            FleetPlays(there, seeds=seeds, prices=prices, workers=given["workers"], told=step) as plays,
        ):
            advice, kind = simulated_advice(plays, target=given["target"], cards=cards)
    except LogError as error:
        raise click.ClickException(str(error)) from error
    plain = {"simulated": True, "notes": list(there.notes), **msgspec.to_builtins(advice)}
    if given["vpa"]:
        found = recommendation(advice, kind, container=given["container"], namespace=given["namespace"])
        print_json(found)
    elif as_json:
        print_json(plain)
    else:
        click.echo("\n".join(advice_lines(plain, columns)))


def _ask(address: str | None, order: dict[str, Any]) -> dict[str, Any]:
    async def ask(link: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await link.order("Scaling", order)
        return answer

    try:
        return asked(address, ask)
    except ValueError as error:
        fail(str(error))
