"""`steersman alerts`: what fires, the rules for Prometheus, and a test of the webhooks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from extproc.cli.options import examples, load_or_exit
from extproc.cli.status import address_option
from extproc.cli.tenants import asked
from extproc.config.places import FILE_VARIABLE

#: How alerts are drawn, by severity.
COLORS = {"critical": "red", "warning": "yellow", "info": "cyan"}
#: Ended alerts shown; --json has them all.
RECENT_SHOWN = 10


@click.group(
    "alerts",
    invoke_without_command=True,
    epilog=examples(
        "steersman alerts",
        "steersman alerts --rules",
        "steersman alerts --json | jq '.firing[].labels.alertname'",
        "steersman alerts export -o steersman-rules.yaml",
    ),
)
@address_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--rules", is_flag=True, help="Show every rule, firing or not.")
@click.pass_context
def command(ctx: click.Context, address: str | None, as_json: bool, rules: bool) -> None:
    """Show the alerts of a running service: firing, pending, and those that are over.

    Without a configuration the built-in rules of docs/alerts.md are on. Exits 1 when no service answers.
    """
    ctx.obj = address
    if ctx.invoked_subcommand is not None:
        return
    found = _ask(address, {})
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    show(found, rules=rules)


@command.command("test", epilog=examples("steersman alerts test", "steersman alerts test pager"))
@click.argument("webhook", required=False)
@address_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def test(group_address: str | None, webhook: str | None, address: str | None, as_json: bool) -> None:
    """Send a test notification to WEBHOOK, or to all of them.

    It goes the way of every notification, retries included; `steersman alerts` shows what became of it.
    """
    found = _ask(address or group_address, {"test": webhook or ""})
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"on its way to {', '.join(found['sent_to'])}; steersman alerts shows what becomes of it")


@command.command(
    "export",
    epilog=examples(
        "steersman alerts export > rules.yaml && promtool check rules rules.yaml",
        "steersman alerts export -f steersman.yaml -o rules.yaml",
    ),
)
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    envvar=FILE_VARIABLE,
    help="A configuration whose rules are exported; the built-in rules alone when left out.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write here.")
def export(file: Path | None, output: Path | None) -> None:
    """Print the rules as a Prometheus rule file.

    Over the metrics of docs/metrics.md, so that Prometheus and its Alertmanager fire as the service does.
    """
    text = exported(file)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def exported(file: Path | None) -> str:
    """The rule file of a configuration, or of the built-in rules for one class `standard`."""
    from extproc.config.alerts import Alerts
    from extproc.observe.alerts.defaults import rules_of
    from extproc.observe.alerts.prometheus import export as made

    if file is None:
        alerts, classes = Alerts(), ["standard"]
    else:
        config = load_or_exit(file)
        alerts, classes = config.alerts, [each.name for each in config.classes]
    return made(rules_of(alerts), budgets={name: 1.0 - alerts.slo.of(name) for name in classes})


def show(found: Mapping[str, Any], *, rules: bool = False) -> None:
    """Draw the answer of the command `Alerts`."""
    for kind in ("firing", "pending"):
        for alert in found[kind]:
            _line(kind, alert)
    if not found["firing"] and not found["pending"]:
        click.echo(f"nothing fires ({len(found['rules'])} rules)")
    for alert in found["recent"][:RECENT_SHOWN]:
        _line("over", alert)
    if len(found["recent"]) > RECENT_SHOWN:
        click.echo(click.style(f"… and {len(found['recent']) - RECENT_SHOWN} more that are over", dim=True))
    if rules:
        for rule in found["rules"]:
            state = "firing" if rule["firing"] else "pending" if rule["pending"] else "quiet"
            each = "" if rule["each"] == "fleet" else f" of each {rule['each']}"
            click.echo(f"{state:<8} {rule['severity']:<9} {rule['name']}{each}: {rule['summary']}")
    for name, box in found["webhooks"].items():
        trouble = click.style(f": {box['trouble']}", fg="red") if box["trouble"] else ""
        click.echo(
            f"webhook {name}: {box.get('delivered', 0)} delivered, {box['waiting']} waiting, "
            f"{box.get('dropped', 0) + box.get('given_up', 0) + box.get('refused', 0)} lost{trouble}"
        )


def _line(kind: str, alert: Mapping[str, Any]) -> None:
    labels, notes = alert["labels"], alert["annotations"]
    color = COLORS[labels["severity"]] if kind == "firing" else None
    head = click.style(
        f"{kind:<8}{labels['severity']:<9}{labels['alertname']}", fg=color, bold=kind == "firing"
    )
    until = f" until {alert['endsAt']}" if kind == "over" else ""
    click.echo(f"{head}  {notes['description']}")
    detail = f"{notes['detail']}; " if "detail" in notes else ""
    click.echo(click.style(f"        {detail}{notes['summary']} Since {alert['startsAt']}{until}.", dim=True))


def _ask(address: str | None, order: dict[str, Any]) -> dict[str, Any]:
    async def ask(link: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await link.order("Alerts", order)
        return answer

    try:
        return asked(address, ask)
    except ValueError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
