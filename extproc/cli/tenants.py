"""`steersman tenants`: what each tenant uses of what it may. Also draws one tenant, for `tenant show`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import click

from extproc.cli.options import examples, json_option
from extproc.cli.status import address_option

WATCH_EVERY_S = 1.0
#: From this share of a limit on it is shown as nearly spent.
NEARLY = 0.8

T = TypeVar("T")


@click.command(
    "tenants",
    epilog=examples(
        "steersman tenants",
        "steersman tenants --watch",
        "steersman tenants --json | jq '.tenants | map_values(.in_flight)'",
    ),
)
@address_option
@json_option
@click.option("--watch", is_flag=True, help="Keep showing it until Ctrl-C.")
def command(address: str | None, as_json: bool, watch: bool) -> None:
    """Show each tenant's use of its quotas, in flight and held requests, what was borrowed and throttled.

    Figures are of one service; counts are since its start. Exits 1 when no service answers.
    """

    async def show(link: Any) -> None:
        while True:
            status = await link.status()
            _print(status, as_json=as_json, compact=watch)
            if not watch:
                return
            await asyncio.sleep(WATCH_EVERY_S)

    with contextlib.suppress(KeyboardInterrupt):
        asked(address, show)


def asked(address: str | None, ask: Callable[[Any], Awaitable[T]]) -> T:
    """Ask a running service; exits 1 when none answers."""
    from extproc.demo.running import link_to
    from extproc.supervise.asking import ServiceSilentError

    async def run() -> T:
        link = await link_to(address)
        try:
            return await ask(link)
        finally:
            await link.close()

    try:
        return asyncio.run(run())
    except ServiceSilentError as error:
        click.echo(f"{error}; {error.advice}", err=True)
        sys.exit(1)


def print_tenants(tenants: Mapping[str, Mapping[str, Any]], *, left_out: int = 0) -> None:
    """A line for each tenant, and below it one for each of its limits."""
    labels = [_label(limit) for each in tenants.values() for limit in each["limits"]]
    width = max((len(label) for label in labels), default=0)
    if labels:
        head = f"  {'':<{width}} {'used':>12} {'of':>12} {'borrowed':>9} {'throttled':>9}"
        click.echo(click.style(head, dim=True))
    for name, each in tenants.items():
        click.echo(
            f"{click.style(name, bold=True)}  {each['class']}, weight {each['weight']:g}: "
            f"{each['in_flight']} in flight, {each['held']} held{'' if each['limits'] else ', no limits'}"
        )
        for limit in each["limits"]:
            click.echo(f"  {_label(limit):<{width}} {_figures(limit)}")
        if each.get("scopes_left_out"):
            click.echo(f"  … and {each['scopes_left_out']} models' and keys' quotas")
    if left_out:
        click.echo(f"… and {left_out} tenants; see one with steersman tenant show NAME")


def _print(status: Mapping[str, Any], *, as_json: bool, compact: bool) -> None:
    use = status["use"]
    if as_json:
        tenants = {name: _with_counts(status, name, each) for name, each in use["tenants"].items()}
        at = {"at": time.time()} if compact else {}
        click.echo(json.dumps({**at, **use, "tenants": tenants}, indent=None if compact else 2))
        return
    if compact:
        click.clear()
    print_tenants(use["tenants"], left_out=use["left_out"])


def _with_counts(status: Mapping[str, Any], name: str, use: Mapping[str, Any]) -> dict[str, Any]:
    """A tenant's use beside the counts of its requests since the start."""
    counts = status["tenants"].get(name, {})
    return {**use, **{each: counts.get(each, 0) for each in ("decided", "ok", "rejected")}}


def _label(limit: Mapping[str, Any]) -> str:
    scope = "" if limit["scope"] == "tenant" else f" {limit['scope']}"
    return f"{limit['limit']}{scope}"


def _figures(limit: Mapping[str, Any]) -> str:
    share = limit["used"] / limit["allowed"] if limit["allowed"] else 0.0
    color = "red" if share >= 1.0 else "yellow" if share >= NEARLY else None
    used = click.style(f"{limit['used']:>12,.6g}", fg=color)
    throttled = click.style(f"{limit['throttled']:>9}", fg="red" if limit["throttled"] else None)
    return f"{used} {limit['allowed']:>12,.12g} {limit['borrowed']:>9} {throttled}"
