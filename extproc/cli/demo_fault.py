"""`steersman demo-fault`: breaks something in a running demo, or mends it."""

from __future__ import annotations

import asyncio
import sys

import click

from extproc.cli.options import examples, json_option, print_json


@click.command(
    "demo-fault",
    epilog=examples(
        "steersman demo-fault --list",
        "steersman demo-fault xid=79 2                  # replica 2's card falls off the bus",
        "steersman demo-fault slow=6 cheap-a100",
        "steersman demo-fault clear                     # mend everything",
    ),
)
@click.argument("kind", required=False, metavar="KIND[=VALUE]")
@click.argument("target", required=False)
@click.option("--list", "listed", is_flag=True, help="List the kinds, and the parts of the running demo.")
@click.option("--demo", "pid", type=int, help="The demo's pid, where several run; the youngest if left out.")
@json_option
def command(kind: str | None, target: str | None, listed: bool, pid: int | None, as_json: bool) -> None:
    """Break something in a running `steersman demo`, and say what to watch.

    \b
    KIND is xid[=79], throttle[=0.4], ecc, hang, crash, slow[=6], drain,
    agent[=stop|kill], service, or clear, which mends everything.

    TARGET is a replica's number, name or address, or a node's name (all of its replicas). Exits 1 when no
    demo runs or the part cannot be struck, 2 on wrong usage.
    """
    from extproc.demo.faults import FaultError, WrongOrderError, strike
    from extproc.demo.running import NoDemoError, find
    from extproc.supervise.asking import ServiceSilentError

    if listed:
        _list(pid, as_json=as_json)
        return
    if kind is None:
        raise click.UsageError("say what to break, such as: steersman demo-fault xid 2 (--list shows all)")
    name, given, value = kind.partition("=")
    try:
        done = asyncio.run(strike(find(pid), name, value=value if given else None, target=target))
    except NoDemoError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except FaultError as error:
        click.echo(str(error), err=True)
        sys.exit(2 if isinstance(error, WrongOrderError) else 1)
    except ServiceSilentError as error:
        click.echo(f"{error}; it may be restarting: try again in a moment", err=True)
        sys.exit(1)
    if as_json:
        print_json({"did": done.did, "watch": done.watch})
        return
    click.echo(f"did:   {done.did}")
    click.echo(f"watch: {done.watch}")


def _list(pid: int | None, *, as_json: bool) -> None:
    from extproc.demo.faults import DEFAULT_NODE, DEFAULT_REPLICA, KINDS
    from extproc.demo.running import NoDemoError, find

    if as_json:
        print_json(
            {
                name: {"value": kind.value, "strikes": kind.strikes, "help": kind.help}
                for name, kind in KINDS.items()
            }
        )
        return
    for name, kind in KINDS.items():
        shown = name if kind.value is None else f"{name}[={kind.value}]"
        click.echo(f"{shown:<16} {kind.strikes:<11} {kind.help}")
    click.echo()
    try:
        demo = find(pid)
    except NoDemoError as error:
        click.echo(str(error))
        return
    click.echo(f"demo {demo.pid} at {demo.url}, service at {demo.service}")
    for replica in demo.replicas:
        usual = "  (default)" if replica.number == DEFAULT_REPLICA else ""
        click.echo(f"  {replica.number}  {replica.name:<10}  {replica.address}  {replica.node}{usual}")
    for index, node in enumerate(demo.nodes):
        click.echo(f"  {node.name}{'  (default of agent)' if index == DEFAULT_NODE else ''}")
