"""`steersman status`: what a running service says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

import click

from extproc.cli.options import examples, json_option

#: A terminal's height when there is none: room for every decision shown.
LINES_ENOUGH = 100


address_option = click.option(
    "--address",
    envvar="STEERSMAN_ADDRESS",
    show_envvar=True,
    help="On this machine its service.listen (ip:port or unix:/path), from elsewhere its admin port "
    "(https://host:9090, with a token in STEERSMAN_TOKEN).  [default: that of steersman.yaml here, "
    "else 127.0.0.1:50051, else a running demo's]",
)


@click.command(
    "status",
    epilog=examples(
        "steersman status",
        "steersman status --address unix:/run/steersman/extproc.sock",
        "STEERSMAN_TOKEN=… steersman status --address https://10.0.0.7:9090",
        "steersman status --json | jq .counts",
        "steersman status --json --watch                # a line of JSON a second",
    ),
)
@address_option
@json_option
@click.option("--watch", is_flag=True, help="Keep showing it until Ctrl-C.")
def command(address: str | None, as_json: bool, watch: bool) -> None:
    """Show tenants, endpoints and the last decisions of a running service.

    Exits 1 when no service answers.
    """
    from extproc.supervise.asking import ServiceSilentError

    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_status(address, as_json=as_json, watch=watch))
    except ServiceSilentError as error:
        click.echo(f"{error}; {error.advice}", err=True)
        sys.exit(1)


async def _status(address: str | None, *, as_json: bool, watch: bool) -> None:
    from rich.console import Console

    from extproc.demo.running import link_to
    from extproc.terminal.live import PICTURE_EVERY_S, Events, show_picture
    from extproc.terminal.tables import clock, screen, status_view

    link = await link_to(address)
    console = Console()
    events = Events()

    def draw(status: dict[str, Any], width: int, height: int) -> Any:
        return screen(
            status_view(status, width=width, height=height),
            title=f"[bold]steersman[/]  service at {link.address}",
            right=f"up {clock(status['uptime_s'])}   in flight {status['in_flight']}",
            notes=[_pools(status), *_experiments(status)],
            events=list(events.lines),
        )

    try:
        found = await link.status()
        if watch and as_json:
            while True:
                click.echo(json.dumps({"at": time.time(), **found}))
                await asyncio.sleep(2 * PICTURE_EVERY_S)
                found = await link.status()
        elif watch:
            await show_picture(console, link.status, draw, events)
        elif as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            console.print(draw(found, console.width, LINES_ENOUGH))
    finally:
        await link.close()


def _pools(status: dict[str, Any]) -> str:
    """Pools and how each chooses."""
    pools = [f"{name}: {pool['strategy']}" for name, pool in status["pools"].items()]
    return "[dim]" + "   ".join(pools) + "[/]"


def _experiments(status: dict[str, Any]) -> list[str]:
    """A line for each experiment: its arms, and that the guardrail has stopped one."""
    lines = []
    for each in status.get("experiments", []):
        arms = [
            f"{arm['name']} {arm['share']:.0%}{' stopped' * bool(arm['stopped'])}" for arm in each["arms"]
        ]
        shadow = [f"shadow {each['shadow']['strategy']}"] if each["shadow"] else []
        lines.append(f"[dim]experiment {each['name']} ({each['state']}): {', '.join(arms + shadow)}[/]")
    return lines
