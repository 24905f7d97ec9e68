"""`steersman doctor`: looks at a whole deployment and says what to mend.

Owns the options, how findings are shown and the exit code; the checks are `extproc.doctor`'s.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extproc.cli.completion import complete_models
from extproc.cli.options import EXIT_FAILED, config_option, examples, json_option, load_or_exit, print_json

if TYPE_CHECKING:
    from extproc.doctor.finding import DoctorReport

_MARKS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "cyan")}


@click.command(
    "doctor",
    epilog=examples(
        "steersman doctor -f steersman.yaml",
        "steersman doctor --key sk-steer-…      # also sends a prompt of one token, all the way",
        "steersman doctor --envoy-admin 10.0.0.7:9901 --address https://10.0.0.7:9090 --json",
        "steersman doctor --offline             # the file and this machine alone",
        "steersman doctor --list                # every check there is",
    ),
)
@config_option
@click.option(
    "--address", envvar="STEERSMAN_ADDRESS", show_envvar=True, help="The service; gateway.services else."
)
@click.option("--envoy-admin", metavar="IP:PORT", help="Envoy's admin port; gateway.envoy_admin else.")
@click.option("--gateway", metavar="IP:PORT|URL", help="Where clients connect; gateway.listen else.")
@click.option(
    "--key", envvar="STEERSMAN_KEY", show_envvar=True, help="Send a prompt of one token with this API key."
)
@click.option("--model", shell_complete=complete_models, help="The prompt's model; the default one else.")
@click.option("--probe", is_flag=True, help="Send that prompt without a key (gateway.auth: none).")
@click.option("--offline", is_flag=True, help="Ask nobody: look at the file and this machine alone.")
@click.option("--list", "listed", is_flag=True, help="List the checks, and look at nothing.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Also name what is well, and what could not be looked at."
)
@json_option
def command(
    file: Path,
    address: str | None,
    envoy_admin: str | None,
    gateway: str | None,
    key: str | None,
    model: str | None,
    probe: bool,
    offline: bool,
    listed: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Check a deployment, and say what to mend.

    Looks at the file, at Envoy's running configuration (filters, order, metadata, access log, routes), at the
    service's books, at replicas, agents, Redis and clocks. It changes nothing, and takes about three seconds.
    Exits 0 when nothing is wrong (warnings are allowed), 1 when something is, 2 when the file cannot be used.
    """
    from extproc.doctor.checks import CHECKS
    from extproc.doctor.finding import run
    from extproc.doctor.gather import Wanted, gather

    if listed:
        rows = {check.id: check.about for check in CHECKS}
        if as_json:
            print_json(rows)
            return
        width = max(map(len, rows))
        for name, about in rows.items():
            click.echo(f"{name:<{width}}  {about}")
        return
    if offline and (probe or key):
        raise click.UsageError("--offline asks nobody; it goes without --key and --probe")
    config = load_or_exit(file, as_json=as_json)
    wanted = Wanted(
        service=address,
        envoy_admin=envoy_admin,
        gateway=gateway,
        key=key,
        model=model,
        probe=probe,
        offline=offline,
    )
    report = run(CHECKS, asyncio.run(gather(config, file, wanted)))
    if as_json:
        print_json(plain_of(report))
    else:
        _print(report, verbose=verbose)
    if not report.well:
        sys.exit(EXIT_FAILED)


def plain_of(report: DoctorReport) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "well": report.well,
        "findings": [
            {"id": each.id, "severity": each.severity.value, "seen": each.seen, "mend": each.mend}
            for each in report.findings
        ],
        "passed": list(report.passed),
        "left_out": report.left_out,
    }


def _print(report: DoctorReport, *, verbose: bool) -> None:
    from extproc.doctor.finding import Severity

    for each in report.findings:
        mark, color = _MARKS[each.severity.value]
        click.echo(f"{click.style(mark, fg=color, bold=True)} {click.style(each.id, bold=True)}  {each.seen}")
        click.echo(f"  {click.style('mend:', dim=True)} {each.mend}")
    if verbose:
        for name in report.passed:
            click.echo(f"{click.style('✓', fg='green')} {name}")
        for name, why in report.left_out.items():
            click.echo(click.style(f"- {name}: {why}", dim=True))
    counts = {severity.value: report.count(severity) for severity in Severity}
    found = (
        ", ".join(f"{n} {name}{'s' if n != 1 else ''}" for name, n in counts.items() if n)
        or "nothing to mend"
    )
    left = f", {len(report.left_out)} not possible (-v says why)" if report.left_out else ""
    click.echo(f"{len(report.passed)} checks passed{left}: {found}")
