"""`steersman sim-replica`: TGI-compatible simulated replicas on local ports, until interrupted.

Owns the command line only; the replicas are `extproc.sim`'s.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extproc.cli.options import examples

if TYPE_CHECKING:
    from extproc.sim.spec import ReplicaSpec


@click.command(
    "sim-replica",
    epilog=examples(
        "steersman sim-replica --count 2 --port 8080",
        "steersman sim-replica --hardware h100-80g/llama-3-8b --slowdown 3     # a straggler",
        "steersman sim-replica --hardware list",
        'curl -s 127.0.0.1:8080/generate -d \'{"inputs": "Hi [[sim:out=5]]"}\' -H \'content-type: '
        "application/json'",
    ),
)
@click.option(
    "-f",
    "--file",
    "fleet_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Fleet file (YAML) listing the replicas; goes with no other option.",
)
@click.option(
    "--count", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many replicas."
)
@click.option("--name", default="sim", show_default=True, help="Name; with several, name-0, name-1 …")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port of the first replica, the others follow; 0 takes free ones.",
)
@click.option(
    "--hardware", default="a100-80g/llama-3-8b", show_default=True, help="Timing model; `list` shows all."
)
@click.option(
    "--model",
    "model_id",
    default="meta-llama/Meta-Llama-3-8B-Instruct",
    show_default=True,
    help="Model id that the replicas report.",
)
@click.option(
    "--time-scale", type=float, default=1.0, show_default=True, help="10 runs ten times faster than life."
)
@click.option("--slowdown", type=float, default=1.0, show_default=True, help="3 makes a straggler.")
@click.option("--noise", type=float, default=0.0, show_default=True, help="Relative step noise, 0 to 0.3.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of answers and noise.")
@click.option("--max-concurrent-requests", type=int, default=128, show_default=True, help="Permits.")
@click.option("--max-batch-prefill-tokens", type=int, default=4096, show_default=True, help="Tokens a step.")
@click.option("--max-batch-size", type=int, help="Sequences running at once; as many as fit where not given.")
@click.option("--max-input-tokens", type=int, default=8191, show_default=True, help="Longest prompt.")
@click.option("--max-total-tokens", type=int, default=8192, show_default=True, help="Prompt plus output.")
@click.option("--kv-capacity-tokens", type=int, help="KV cache; the hardware's own where not given.")
@click.option("--output-median-tokens", type=int, default=120, show_default=True, help="Of unforced answers.")
@click.pass_context
def command(context: click.Context, /, fleet_file: Path | None, count: int, **settings: Any) -> None:
    """Run TGI-compatible replica simulators.

    Each speaks TGI's routes, streams, errors and metrics on its own port, with TGI's scheduler rules
    over published step times: simulated (timings from splitwise-sim / vidur), never TGI measured.
    A prompt holding [[sim:out=N]] is answered with exactly N tokens.
    """
    if settings["hardware"] == "list":
        _list_hardware()
        return
    specs = (
        _from_options(settings, count)
        if fleet_file is None
        else _from_file(fleet_file, _given(context) - {"fleet_file"})
    )
    from extproc.sim.listening import start_replicas

    async def run() -> None:
        running = await start_replicas(specs)
        try:
            for spec, address in zip(specs, running.addresses, strict=True):
                click.echo(f"{spec.name}  http://{address}  {spec.model_id}  {spec.hardware}")
            click.echo("simulated; timings from splitwise-sim / vidur. Ctrl-C stops.")
            await _interrupted()
        finally:
            await running.stop()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())
    except OSError as error:
        raise click.ClickException(f"cannot listen: {error.strerror or error}; try another --port") from error


def _given(context: click.Context) -> set[str]:
    """The options that the user wrote."""
    default = click.core.ParameterSource.DEFAULT
    return {name for name in context.params if context.get_parameter_source(name) is not default}


def _list_hardware() -> None:
    from extproc.sim.timing import HARDWARE

    for hardware in HARDWARE.values():
        click.echo(f"{hardware.name}  {hardware.kv_capacity_tokens} KV tokens  {hardware.source}")


def _from_options(settings: dict[str, Any], count: int) -> Sequence[ReplicaSpec]:
    from extproc.sim.fleetfile import spread

    if settings["port"] and settings["port"] + count - 1 > 65535:
        raise click.UsageError(
            f"--port {settings['port']} leaves no room for --count {count}; "
            f"use --port {65536 - count} or lower"
        )
    try:
        return spread(settings, count=count)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _from_file(path: Path, also_given: set[str]) -> Sequence[ReplicaSpec]:
    from extproc.sim.fleetfile import FleetFileError, load_fleet

    if also_given:
        names = ", ".join("--" + name.replace("_", "-") for name in sorted(also_given))
        raise click.UsageError(f"-f goes with no other option; put these into {path}: {names}")
    try:
        return load_fleet(path.read_text(encoding="utf-8"))
    except FleetFileError as error:
        raise click.UsageError("\n".join(f"{path}: {problem}" for problem in error.problems)) from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path}: not UTF-8 text") from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed; asyncio's own otherwise."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _interrupted() -> None:
    """Until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


if __name__ == "__main__":
    command()
