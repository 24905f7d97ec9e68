"""The command `steersman`: a group whose commands are imported only when they run.

envoy-data-plane alone takes 1.6 s to import; `steersman --help` and `check` should not pay for it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from extproc import __version__
from extproc.extras import one_line

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: Command name → (module under extproc.cli, one line of help). In the order of GROUPS.
COMMANDS = {
    "init": ("init", "Write a first configuration by asking backends what they are."),
    "up": ("up", "Start Envoy and the service for your backends."),
    "serve": ("serve", "Run the service alone (for an Envoy that runs elsewhere)."),
    "agent": ("agent", "Watch this node's GPUs and engines, and tell the services."),
    "demo": ("demo", "Run it all on simulated replicas, with two tenants' traffic."),
    "demo-fault": ("demo_fault", "Break something in a running demo, or mend it."),
    "sim-replica": ("sim_replica", "Run simulated TGI replicas."),
    "top": ("top", "Watch a running service live, in the terminal."),
    "status": ("status", "Show tenants, endpoints and decisions of a running service."),
    "fleet": ("fleet", "Show endpoints, health and GPUs; drain one, clear faults."),
    "tenants": ("tenants", "Show what tenants use of their quotas."),
    "report": ("report", "Show latencies, use and cost of the past; export charges."),
    "scale": ("scale", "Show replicas wanted and had, and why; advise on larger ones."),
    "alerts": ("alerts", "Show alerts; export the rules to Prometheus; test webhooks."),
    "cache": ("cache", "Show what the response cache holds and saves; purge it."),
    "explain": ("explain", "Show why a request went where it went, endpoint by endpoint."),
    "doctor": ("doctor", "Check a running deployment, and say what to mend."),
    "check": ("check", "Check a configuration; report every mistake at once."),
    "tenant": ("tenant", "Show or change a tenant: quotas, class, keys."),
    "config": ("config_cmd", "The configuration's history: who changed what, and rollback."),
    "experiment": ("experiment", "Compare strategies on live traffic: start, status, stop."),
    "envoy-config": ("envoy_config", "Print Envoy's bootstrap for a configuration."),
    "families": ("families", "Train the classifier that chooses a family's model."),
    "completion": ("completion", "Print the completion script of bash, zsh or fish."),
    "simulate": ("simulate", "Compare strategies on simulated replicas, on a virtual clock."),
    "replay": ("replay", "Replay recorded traffic under other choices, simulated."),
    "plan": ("plan", "Size a fleet on recorded traffic, and find the cheapest, simulated."),
    "tune": ("tune", "Search a strategy's parameters over recorded traffic."),
}

#: What click says of an argument that a command does not take.
_UNEXPECTED = re.compile(r"^Got unexpected extra argument \((\S+)\)$")

#: Headings of `steersman --help` → their commands; one that stands nowhere comes last, under "Other".
GROUPS = {
    "Run": ("init", "up", "serve", "agent", "demo", "demo-fault", "sim-replica"),
    "Look": ("top", "status", "fleet", "tenants", "report", "scale", "alerts", "cache", "explain", "doctor"),
    "Change": ("check", "tenant", "config", "experiment", "envoy-config", "families", "completion"),
    "Try out, simulated": ("simulate", "replay", "plan", "tune"),
}


class LazyGroup(click.Group):
    """Loads a command's module when the command is asked for."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """An unknown one is told with the nearest; click would look among what was loaded, which is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=list(COMMANDS), ctx=ctx
            ) from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's)
        """In the order of COMMANDS: the main job first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's)
        """Import the module that holds the command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"extproc.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an extra that it lacks is said in one line."""
        try:
            with one_line():
                return super().invoke(ctx)
        except click.UsageError as error:
            raise _file_named(error) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's)
        """List the commands from the table, so that help imports none of them."""
        grouped = {name for names in GROUPS.values() for name in names}
        sections = {**GROUPS, "Other": tuple(name for name in COMMANDS if name not in grouped)}
        width = max(map(len, COMMANDS))
        for title, names in sections.items():
            rows = [(name.ljust(width), COMMANDS[name][1]) for name in names if name in COMMANDS]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """From the table too: click's own would import every command to read its help."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found or click.Command.shell_complete(self, ctx, incomplete)


def _file_named(error: click.UsageError) -> click.UsageError:
    """`check my.yaml`: a command that takes its file with -f says so beside "unexpected extra argument"."""
    found = _UNEXPECTED.search(error.message)
    takes = error.ctx is not None and any(each.name == "file" for each in error.ctx.command.params)
    if found is None or not takes:
        return error
    return click.UsageError(f"{error.message}; name the file with -f {found[1]}", ctx=error.ctx)


def _readable(arguments: list[str]) -> None:
    """Arguments must be text: what is not UTF-8 could be written nowhere. Exits 2."""
    for each in arguments:
        try:
            each.encode()
        except UnicodeEncodeError:
            shown = each.encode(errors="surrogateescape").decode(errors="replace")
            click.echo(
                f"{shown!r} is not UTF-8; write it so, in a locale of UTF-8 (LC_ALL=C.UTF-8)", err=True
            )
            sys.exit(2)


EPILOG = """\b
Begin:
  steersman demo                     see it run, on simulated replicas
  steersman init 10.0.0.1:8080 …     write a configuration for your own
  steersman up                       start it, and then: steersman doctor

\b
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
Answers go to standard output, all else to standard error; --json prints JSON;
NO_COLOR and a pipe mean no colour. STEERSMAN_CONFIG and STEERSMAN_ADDRESS stand
in for -f and --address. `steersman COMMAND --help` has examples.
"""


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="steersman")
@click.pass_context
def group(context: click.Context) -> None:
    """Balance multi-tenant LLM inference over GPU replicas, beside Envoy."""
    if os.environ.get("NO_COLOR"):
        context.color = False


def main(arguments: list[str] | None = None) -> Any:
    """The console script. Exit codes: 0 done, 1 failed, 2 bad usage or configuration (options.EXIT_CODES)."""
    _readable(sys.argv[1:] if arguments is None else arguments)
    return group(args=arguments, prog_name="steersman", complete_var="_STEERSMAN_COMPLETE")
