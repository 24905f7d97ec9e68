"""`steersman experiment`: strategies side by side on live traffic, and what came of it.

Starting and stopping edit the configuration, like every other change: checked first, in the history, taken
by the services that read the file. The figures are a running service's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from extproc.cli.changing import asked_why, make, tell, who_option, why_option
from extproc.cli.completion import complete_experiments, complete_pools
from extproc.cli.options import config_option, examples, json_option, print_json
from extproc.cli.status import address_option
from extproc.cli.tenants import asked
from extproc.config.model import Config
from extproc.history.experiments import stop_edits
from extproc.history.surgery import Edit, Put

#: What switches the guardrail off.
NONE = "none"


@click.group(
    "experiment",
    epilog=examples(
        'steersman experiment start deeper --arm control=steer --arm b=steer:queue_tokens=2048 --why "…"',
        "steersman experiment status deeper",
        'steersman experiment stop deeper --keep b --why "b attains more"',
    ),
)
def command() -> None:
    """Compare strategies on live traffic: start, status, stop."""


@command.command(
    "start",
    epilog=examples(
        "steersman experiment start deeper --arm control=steer --arm b=steer:queue_tokens=2048 --share "
        "b=0.1 \\",
        '    --why "longer prompts since Monday"',
        'steersman experiment start watch --shadow prefix --hours 24 --why "is it worth it?"',
    ),
)
@click.argument("name")
@click.option(
    "--pool",
    "pools",
    multiple=True,
    shell_complete=complete_pools,
    help="Where; the only pool when left out. Repeatable.",
)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    metavar="NAME=STRATEGY[:PARAMETER=VALUE,…]",
    help="A strategy to compare; the first is the control. Repeatable.",
)
@click.option(
    "--share", "shares", multiple=True, metavar="ARM=SHARE", help="An arm's share of the traffic; equal else."
)
@click.option(
    "--split",
    type=click.Choice(["request", "session", "tenant"]),
    default="request",
    show_default=True,
    help="What is drawn for an arm.",
)
@click.option("--shadow", metavar="STRATEGY[:PARAMETER=VALUE,…]", help="A strategy that only watches.")
@click.option("--shadow-share", type=float, help="The share of requests it is asked for.  [default: 0.1]")
@click.option(
    "--guardrail",
    metavar=f"SHARE|{NONE}",
    help="Stop an arm that is certainly worse, and by more than this.  [default: 0.05]",
)
@click.option("--confidence", type=float, help="That all intervals hold, at all times.  [default: 0.95]")
@click.option(
    "--hours", type=click.FloatRange(0, 24 * 366, min_open=True), help="How long; until stopped else."
)
@click.option("--requests", "requests_max", type=click.IntRange(min=1), help="End after so many requests.")
@config_option
@why_option
@who_option
@json_option
def start(
    name: str,
    pools: tuple[str, ...],
    arms: tuple[str, ...],
    shares: tuple[str, ...],
    split: str,
    shadow: str | None,
    shadow_share: float | None,
    guardrail: str | None,
    confidence: float | None,
    hours: float | None,
    requests_max: int | None,
    file: Path,
    why: str,
    who: str,
    as_json: bool,
) -> None:
    """Start an experiment: write it into the file, which a running service takes live.

    Exits 2 with every mistake when it could not run, and changes nothing then.
    """
    section: dict[str, Any] = {}
    if arms:
        section["arms"] = _arms(arms, shares)
    elif shares:
        raise click.UsageError("--share says how --arm's divide the traffic; give the arms")
    if shadow is not None:
        strategy, parameters = _strategy(shadow, "--shadow")
        section["shadow"] = {"strategy": strategy, **({"parameters": parameters} if parameters else {})}
        if shadow_share is not None:
            section["shadow"]["share"] = shadow_share
    elif shadow_share is not None:
        raise click.UsageError("--shadow-share without --shadow")
    if not section:
        raise click.UsageError("nothing to compare; give two --arm or more, a --shadow, or both")
    if split != "request":
        section["split"] = split
    if guardrail is not None:
        section["guardrail"] = {"worse_by": 1.0 if guardrail == NONE else _share(guardrail, "--guardrail")}
    if confidence is not None:
        section["confidence"] = confidence
    if hours is not None:
        section["ends"] = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours)
    if requests_max is not None:
        section["requests_max"] = requests_max

    def edits(config: Config) -> Sequence[Edit]:
        if name in config.experiments:
            raise click.UsageError(f"there is an experiment {name!r} already; stop it, or take another name")
        where = list(pools) or [pool.name for pool in config.pools]
        if not pools and len(where) > 1:
            raise click.UsageError(f"say where with --pool; there are {', '.join(where)}")
        for other, found in config.experiments.items():
            if both := sorted(set(where) & set(found.pools)):
                raise click.UsageError(
                    f"pool {both[0]!r} is in experiment {other!r} already; stop that one first"
                )
        return [Put(("experiments", name), {"pools": where, **section})]

    done = make(file, edits, why=asked_why(why), who=who, command=f"experiment start {name}")
    assert done is not None, "a section that was not there is a change"
    tell(done, file, as_json=as_json)
    if as_json:
        return
    click.echo(f"see it with: steersman experiment status {name}")


@command.command(
    "stop",
    epilog=examples(
        'steersman experiment stop deeper --why "no difference"',
        'steersman experiment stop deeper --keep b --why "b attains more"',
    ),
)
@click.argument("name", shell_complete=complete_experiments)
@click.option("--keep", metavar="ARM", help="Make this arm's strategy the pools' own.")
@config_option
@why_option
@who_option
@json_option
def stop(name: str, keep: str | None, file: Path, why: str, who: str, as_json: bool) -> None:
    """End an experiment: all traffic goes the pools' own way again, or the way of the arm that is kept."""

    def edits(config: Config) -> Sequence[Edit]:
        try:
            return stop_edits(config, name, keep)
        except ValueError as error:
            raise click.UsageError(f"{file}: {error}") from error

    done = make(file, edits, why=asked_why(why), who=who, command=f"experiment stop {name}")
    assert done is not None, "a section that was there is a change"
    tell(done, file, as_json=as_json)
    if as_json:
        return
    click.echo(f"its last figures stay, until the service ends: steersman experiment status {name}")


@command.command(
    "status",
    epilog=examples(
        "steersman experiment status",
        "steersman experiment status deeper --json | jq '.experiments[0].verdict'",
    ),
)
@click.argument("name", required=False, shell_complete=complete_experiments)
@address_option
@json_option
def status(name: str | None, address: str | None, as_json: bool) -> None:
    """Show each arm's figures, with intervals that hold however often they are looked at, and a verdict.

    Of several services each counts the same ends; refusals are known only to the one that refused. Exits 1
    when no service answers, or it has no such experiment.
    """
    try:
        found = asked(address, lambda link: link.order("Experiment", {"name": name or ""}))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json(found)
        return
    if not found["experiments"]:
        past = f"; stopped since its start: {', '.join(found['past'])}" if found["past"] else ""
        click.echo(f"no experiment runs{past}")
    for i, each in enumerate(found["experiments"]):
        if i:
            click.echo()
        for line in lines_of(each):
            click.echo(line)


def lines_of(experiment: dict[str, Any]) -> list[str]:
    """An experiment as text: a line on it, a table of arms, the verdicts, the shadow."""
    ended = f" ({experiment['ended']})" if experiment["ended"] else ""
    unit = experiment["split"]
    head = f"{experiment['name']}: {experiment['state']}{ended} on {', '.join(experiment['pools'])}"
    lines = [f"{head}, split by {unit}, counted for {_duration(experiment['counted_s'])}"]
    if experiment["arms"]:
        rows = [_HEAD, *(_row(arm) for arm in experiment["arms"])]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        lines += [
            "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.append(f"  all intervals hold together with {experiment['confidence']:.1%}, at all times")
        if unit != "request":
            lines.append(
                f"  each {unit} counts once in them; {experiment['units_gathering']} are still gathering"
            )
        if experiment["rerouted"]:
            lines.append(f"  {experiment['rerouted']} requests of stopped arms went the control's way")
        lines += [f"  {sentence}" for sentence in experiment["verdict"]]
    if experiment["shadow"]:
        lines += _shadow_lines(experiment["shadow"])
    return lines


_HEAD = (
    "arm",
    "strategy",
    "share",
    "requests",
    "attained",
    "errors",
    "shed",
    "ttft ms (mean, p50, p90)",
    "tpot ms",
    "held ms",
    "tokens out",
)


def _row(arm: dict[str, Any]) -> tuple[str, ...]:
    ttft, tested = arm["ttft_ms"], arm["ttft_ms"]["tested"]
    parameters = ",".join(f"{name}={value}" for name, value in arm["parameters"].items())
    mean = "-"
    if tested["count"]:
        mean = f"{tested['mean']:.0f} [{tested['low']:.0f}, {tested['high']:.0f}]"
    return (
        arm["name"] + (" (stopped)" if arm["stopped"] else ""),
        arm["strategy"] + (f":{parameters}" if parameters else ""),
        f"{arm['share']:.0%}",
        str(arm["requests"]),
        _share_text(arm["attainment"]),
        _share_text(arm["error_share"]),
        str(arm["shed"]),
        f"{mean}, {_ms(ttft['p50'])}, {_ms(ttft['p90'])}",
        _ms(arm["tpot_ms"]["mean"]),
        _ms(arm["held_ms"]["mean"]),
        str(arm["output_tokens"]),
    )


def _shadow_lines(shadow: dict[str, Any]) -> list[str]:
    agreement = f"{shadow['agreement']:.1%}" if shadow["agreement"] is not None else "-"
    line = (
        f"  shadow {shadow['strategy']}: asked {shadow['asked']} times, agreed {agreement}, would have "
        f"waited {shadow['would_wait']} times, failed {shadow['failed']} times"
    )
    if shadow["score_gap_mean"] is not None:
        line += f"; where it differed, the choice was worse by {shadow['score_gap_mean']:g} in its own score"
    lines = [line]
    if shadow["last_failure"]:
        lines.append(f"    last failure: {shadow['last_failure']}")
    lines += [
        f"    {each['id']}: {each['chosen']} was chosen ({each['score_of_chosen']:g}), it says "
        f"{each['shadow']} ({each['score']:g})"
        for each in shadow["last"][:5]
    ]
    return lines


def _share_text(interval: dict[str, Any]) -> str:
    if not interval["count"]:
        return "-"
    return f"{interval['mean']:.1%} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _arms(arms: Sequence[str], shares: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in arms:
        name, equals, rest = text.partition("=")
        if not equals or not name or not rest:
            raise click.BadParameter(f"{text!r} is not NAME=STRATEGY", param_hint="--arm")
        if name in found:
            raise click.BadParameter(f"arm {name!r} is given twice", param_hint="--arm")
        strategy, parameters = _strategy(rest, "--arm")
        found[name] = {"strategy": strategy, **({"parameters": parameters} if parameters else {})}
    for text in shares:
        name, equals, rest = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not ARM=SHARE", param_hint="--share")
        if name not in found:
            raise click.BadParameter(f"{name!r} is none of the arms {', '.join(found)}", param_hint="--share")
        found[name]["share"] = _share(rest, "--share")
    return found


def _strategy(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """`steer:queue_tokens=2048,…` as a strategy and its parameters."""
    strategy, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{part!r} is not PARAMETER=VALUE", param_hint=option)
        parameters[name] = _value(value)
    return strategy, parameters


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _share(text: str, option: str) -> float:
    """`0.1` or `10%`."""
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no share; write 0.1 or 10%", param_hint=option) from None
