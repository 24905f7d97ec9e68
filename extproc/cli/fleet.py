"""`steersman fleet`: the endpoints of a running service, their health and GPUs; drains and cleared faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import click

from extproc.cli.completion import complete_endpoints
from extproc.cli.options import examples, json_option, print_json
from extproc.cli.status import LINES_ENOUGH, address_option

UNKNOWN_ADDRESS = "{address} is not in the fleet; `steersman fleet` lists what is"


@click.group(
    "fleet",
    invoke_without_command=True,
    epilog=examples(
        "steersman fleet",
        "steersman fleet --json | jq '.endpoints[] | select(.ready | not)'",
        "steersman fleet drain 10.0.0.1:8080            # before work on it",
        "steersman fleet --address https://10.0.0.7:9090 --watch",
    ),
)
@address_option
@json_option
@click.option("--watch", is_flag=True, help="Keep showing it until Ctrl-C.")
@click.pass_context
def command(context: click.Context, address: str | None, as_json: bool, watch: bool) -> None:
    """Show endpoints, their health with its causes, their load and GPUs.

    A dash is what nobody has said; JSON has everything known of each endpoint. Exits 1 when no service
    answers.
    """
    context.obj = address
    if context.invoked_subcommand is None:
        _run(address, lambda link: _show(link, as_json=as_json, watch=watch))


@command.command("drain", epilog=examples("steersman fleet drain 10.0.0.1:8080"))
@click.argument("endpoint", metavar="ADDRESS", shell_complete=complete_endpoints)
@json_option
@click.pass_obj
def drain(address: str | None, endpoint: str, as_json: bool) -> None:
    """Send an endpoint nothing new; what runs on it ends there. Holds until `undrain`, or a restart."""

    async def order(link: Any) -> None:
        _known(await link.drain(endpoint, draining=True), endpoint)
        if as_json:
            print_json({"address": endpoint, "draining": True})
            return
        click.echo(f"{endpoint} drains; undo it with: steersman fleet undrain {endpoint}")

    _run(address, order)


@command.command("undrain", epilog=examples("steersman fleet undrain 10.0.0.1:8080"))
@click.argument("endpoint", metavar="ADDRESS", shell_complete=complete_endpoints)
@json_option
@click.pass_obj
def undrain(address: str | None, endpoint: str, as_json: bool) -> None:
    """Take back an operator's drain; one that the endpoint's agent reports stays."""

    async def order(link: Any) -> None:
        _known(await link.drain(endpoint, draining=False), endpoint)
        if as_json:
            print_json({"address": endpoint, "draining": False})
            return
        click.echo(f"{endpoint} takes requests again, unless its agent says otherwise")

    _run(address, order)


@command.command("clear-faults", epilog=examples("steersman fleet clear-faults 10.0.0.1:8080"))
@click.argument("endpoint", metavar="ADDRESS", shell_complete=complete_endpoints)
@json_option
@click.pass_obj
def clear_faults(address: str | None, endpoint: str, as_json: bool) -> None:
    """Say that an endpoint's GPU was seen to: the faults that it has reported so far are over."""

    async def order(link: Any) -> None:
        cleared = await link.clear_faults(endpoint)
        _known(cleared is not None, endpoint)
        if as_json:
            print_json({"address": endpoint, "cleared": cleared})
            return
        click.echo(
            f"{endpoint}: " + (", ".join(cleared) + " cleared" if cleared else "there was no fault to clear")
        )

    _run(address, order)


def _known(found: bool, address: str) -> None:
    if not found:
        click.echo(UNKNOWN_ADDRESS.format(address=address), err=True)
        sys.exit(1)


def _run(address: str | None, work: Callable[[Any], Awaitable[None]]) -> None:
    """Do something with the service; exit 1 when none answers."""
    from extproc.demo.running import link_to
    from extproc.supervise.asking import ServiceSilentError

    async def main() -> None:
        link = await link_to(address)
        try:
            await work(link)
        finally:
            await link.close()

    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(main())
    except ServiceSilentError as error:
        click.echo(f"{error}; {error.advice}", err=True)
        sys.exit(1)


async def _show(link: Any, *, as_json: bool, watch: bool) -> None:
    from rich.console import Console

    from extproc.terminal.fleet import fleet_view, summary
    from extproc.terminal.live import PICTURE_EVERY_S, Events, show_picture
    from extproc.terminal.tables import clock, screen

    console, events = Console(), Events()

    def draw(status: dict[str, Any], width: int, height: int) -> Any:
        return screen(
            fleet_view(status, width=width, height=height),
            title=f"[bold]steersman[/]  fleet of {link.address}",
            right=f"up {clock(status['uptime_s'])}",
            notes=[summary(status)],
            events=list(events.lines),
        )

    if as_json:
        while True:
            told = {"at": time.time(), "endpoints": (await link.status())["endpoints"]}
            click.echo(json.dumps(told) if watch else json.dumps(told, indent=2))
            if not watch:
                return
            await asyncio.sleep(PICTURE_EVERY_S)
    if watch:
        await link.status()  # nobody there is an error at once, and not a picture that waits
        await show_picture(console, link.status, draw, events)
    else:
        console.print(draw(await link.status(), console.width, LINES_ENOUGH))
