"""The command `steersman`: a group whose commands are imported only when they run.

envoy-data-plane alone takes 1.6 s to import; `steersman --help` and `check` should not pay for it.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from extproc import __version__

#: Command name → (module under extproc.cli, one line of help).
COMMANDS = {
    "up": ("up", "Start Envoy and the service for your backends, and supervise both."),
    "demo": ("demo", "Run the whole thing on simulated replicas, with two tenants' traffic."),
    "demo-fault": ("demo_fault", "Break something in a running demo, or mend it."),
    "serve": ("serve", "Run the service alone (for an Envoy that runs elsewhere)."),
    "check": ("check", "Check a configuration; report every mistake at once."),
    "envoy-config": ("envoy_config", "Print Envoy's bootstrap for a configuration."),
    "status": ("status", "Show tenants, endpoints and decisions of a running service."),
    "fleet": ("fleet", "Show endpoints, their health and GPUs; drain one, clear its faults."),
    "agent": ("agent", "Watch this node's GPUs and engines, and report them to the services."),
    "tenants": ("tenants", "Show what tenants use of their quotas."),
    "tenant": ("tenant", "Show or change a tenant: quotas, class, keys."),
    "experiment": ("experiment", "Compare strategies on live traffic: start, status, stop."),
    "config": ("config_cmd", "The configuration's history: who changed what, and rollback."),
    "explain": ("explain", "Show why a request went where it went, endpoint by endpoint."),
    "families": ("families", "Train the classifier that chooses a family's model."),
    "sim-replica": ("sim_replica", "Run simulated TGI replicas."),
    "replay": ("replay", "Replay recorded traffic under other choices, simulated."),
    "tune": ("tune", "Search a strategy's parameters over recorded traffic, simulated."),
    "simulate": ("simulate", "Compare strategies on simulated replicas, on a virtual clock."),
}


class LazyGroup(click.Group):
    """Loads a command's module when the command is asked for."""

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's)
        """List the commands from the table, so that help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="steersman")
def group() -> None:
    """Balance multi-tenant LLM inference over GPU replicas, beside Envoy."""


def main(arguments: list[str] | None = None) -> Any:
    """The console script. Exit codes: 0 done, 1 failed, 2 bad usage or configuration."""
    return group(args=arguments, prog_name="steersman")
