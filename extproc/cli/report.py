"""`steersman report`: what happened, by tenant, pool, model or strategy, and what it is charged at.

Owns the command line, its tables and its CSV; the figures are the running service's.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from extproc.cli.options import EXIT_CONFIG, EXIT_FAILED, examples, fail, print_json
from extproc.cli.status import address_option
from extproc.cli.tenants import asked

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Lines drawn in a table; all are in --json and --csv.
ROWS_MAX = 60
#: Wider than any table.
ROOMY = 10_000
#: Columns of a line in CSV, after the group's.
COUNTS = (
    *("seconds", "requests", "ok", "refused", "error", "client_gone", "expired", "rejected", "left"),
    *("requests_per_s", "output_tokens_per_s", "input_tokens", "output_tokens", "cached_tokens"),
    *("gpu_seconds", "cost", "slo_met", "slo_missed", "attainment"),
)
SPREADS = ("ttft_ms", "tpot_ms", "total_ms", "held_ms", "prompt_tokens", "answer_tokens")
QUANTILES = ("count", "mean", "p50", "p90", "p95", "p99", "max")
TABLES = ("codes", "served", "families")
CHARGES = (
    *("day", "tenant", "model", "requests", "input_tokens", "output_tokens", "cached_tokens"),
    *("gpu_seconds", "cost"),
)

#: What stands above a column, and what stands in it.
_Column = tuple[str, Callable[[Mapping[str, Any]], str]]

_FILTERS = ("tenant", "pool", "model", "strategy", "arm", "place")


@click.command(
    "report",
    epilog=examples(
        "steersman report                                 # tenants, the last 24 hours",
        "steersman report --by model,hour --since today",
        "steersman report --by strategy --since 7d --pool chat --json",
        "steersman report --chargeback --day 2026-11-26 --format csv",
        "steersman report --by day,tenant --since 30d --csv month.csv",
    ),
)
@address_option
@click.option(
    "--by",
    default="tenant",
    show_default=True,
    metavar="NAME[,NAME…]",
    help="What lines are told apart by: tenant, pool, model, strategy, arm, place, and one of minute, hour,"
    " day.",
)
@click.option(
    "--since",
    metavar="TIME",
    help="24h or 7d (so long ago), 2026-11-26, 2026-11-26T12:00Z, today, yesterday.  [default: 24h]",
)
@click.option("--until", metavar="TIME", help="The same; itself left out.  [default: now]")
@click.option("--tenant", metavar="NAME", help="This tenant alone.")
@click.option("--pool", metavar="NAME", help="This pool alone.")
@click.option("--model", metavar="NAME", help="This model alone.")
@click.option("--strategy", metavar="NAME", help="This strategy alone.")
@click.option("--arm", metavar="EXPERIMENT/ARM", help="This arm of an experiment alone.")
@click.option("--place", metavar="NAME", help="Clients of this place alone (site.places).")
@click.option("--chargeback", is_flag=True, help="What is charged: by day, tenant and model.")
@click.option("--day", metavar="DATE", help="With --chargeback: this day (UTC).  [default: yesterday]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="So many lines.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), help="How it is printed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: --format json.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write CSV there; - prints it.",
)
def command(
    address: str | None,
    by: str,
    since: str | None,
    until: str | None,
    chargeback: bool,
    day: str | None,
    limit: int | None,
    form: str | None,
    as_json: bool,
    csv_file: Path | None,
    **filters: str | None,
) -> None:
    """Show latencies, throughput, targets met, tokens and cost of a time that is past.

    Days are UTC's. Of several services that share a Redis, any one answers for all. Latency quantiles are
    within one percent. Exits 1 when no service answers or keeps no figures, 2 for a question that makes no
    sense.
    """
    formats = [each for each in (form, "json" if as_json else None, "csv" if csv_file else None) if each]
    if len(set(formats)) > 1:
        raise click.UsageError("give one of --format, --json, --csv")
    form = formats[0] if formats else "table"
    order: dict[str, Any] = {"by": by, "chargeback": chargeback, "since": since, "until": until, "day": day}
    order |= {"limit": limit, **{name: filters[name] for name in _FILTERS}}
    if chargeback and not (since or until or day):
        order["day"] = "yesterday"
    if chargeback and day and (since or until):
        raise click.UsageError("give --day, or --since and --until")
    order = {name: value for name, value in order.items() if value is not None}

    async def ask(link: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await link.order("Report", order)
        return answer

    try:
        found = asked(address, ask)
    except ValueError as error:
        # The service's own state, or else the question.
        fail(str(error), code=EXIT_FAILED if str(error).startswith("analytics ") else EXIT_CONFIG)
    for note in found["notes"]:
        click.echo(f"note: {note}", err=True)
    if form == "json":
        print_json(found)
    elif form == "csv":
        _put(csv_of(found, chargeback=chargeback), csv_file)
    else:
        from rich.console import Console

        show(found, Console(), chargeback=chargeback)


def csv_of(found: Mapping[str, Any], *, chargeback: bool) -> str:
    """An answer as CSV, with a line of names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if chargeback:
        writer.writerow(CHARGES)
        writer.writerows([_number(each[name]) for name in CHARGES] for each in found["charges"])
        return out.getvalue()
    spread = [(name, each) for name in SPREADS for each in QUANTILES]
    writer.writerow([*found["by"], *COUNTS, *(f"{name}_{each}" for name, each in spread), *TABLES])
    for line in found["lines"]:
        writer.writerow(
            [
                *(line["group"][name] for name in found["by"]),
                *(_number(line[name]) for name in COUNTS),
                *(_number(line[name][each]) for name, each in spread),
                *(";".join(f"{key}={count}" for key, count in line[name].items()) for name in TABLES),
            ]
        )
    return out.getvalue()


def show(found: Mapping[str, Any], console: Console, *, chargeback: bool) -> None:
    """Draw an answer as a table; columns that do not fit are left out, and said."""
    from rich.markup import escape

    console.print(f"[dim]{found['since']} to {found['until']}, kept in {escape(found['store'])}[/]")
    rows = found["charges"] if chargeback else found["lines"]
    if not rows:
        console.print("nothing was asked in this time")
        return
    columns = [] if chargeback else list(_COLUMNS)
    table = _table(found, rows, columns)
    roomy = console.options.update(width=ROOMY)
    while len(columns) > 1 and console.measure(table, options=roomy).maximum > console.width:
        columns.remove(min(columns, key=lambda each: _IMPORTANCE.get(each[0], len(_IMPORTANCE))))
        table = _table(found, rows, columns)
    console.print(table, highlight=False)
    if len(columns) < len(_COLUMNS) and not chargeback:
        missing = ", ".join(name for name, _ in _COLUMNS if name not in dict(columns))
        console.print(f"[dim]not shown for want of room: {missing}[/]")
    more = max(0, len(rows) - ROWS_MAX) + found["left_out"]
    if more:
        console.print(f"[dim]… and {more} more; --json and --csv have all of {len(rows)}[/]")


def _table(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], columns: Sequence[_Column]) -> Table:
    from rich.table import Table

    chargeback = not columns
    table = Table(box=None, pad_edge=False, header_style="dim")
    names = list(CHARGES) if chargeback else [*found["by"], *(name for name, _ in columns)]
    left = 3 if chargeback else len(found["by"])
    for number, name in enumerate(names):
        justify: Literal["left", "right"] = "left" if number < left else "right"
        table.add_column(name.replace("_", " "), justify=justify, overflow="fold")
    for row in rows[:ROWS_MAX]:
        table.add_row(*_cells(row, found["by"], columns))
    if not chargeback and len(rows) > 1:
        heads = ["[bold]all[/]", *[""] * (left - 1)][:left]
        table.add_row(*heads, *(text(found["total"]) for _, text in columns))
    return table


def _cells(row: Mapping[str, Any], by: Iterable[str], columns: Sequence[_Column]) -> list[str]:
    from rich.markup import escape

    if not columns:
        return [escape(_number(row[name])) for name in CHARGES]
    return [*(escape(row["group"][name] or "–") for name in by), *(text(row) for _, text in columns)]


def _not_ok(line: Mapping[str, Any]) -> str:
    """What did not end well, with the most frequent reason of our own."""
    failed = line["requests"] - line["ok"]
    if not failed:
        return "0"
    code = next(iter(line["codes"]), "")
    return f"{failed:,}" + (f" [dim]({code})[/]" if code and line["rejected"] * 2 > failed else "")


def _attained(line: Mapping[str, Any]) -> str:
    share = line["attainment"]
    if share is None:
        return "–"
    style = "green" if share >= 0.99 else "yellow" if share >= 0.9 else "red"
    return f"[{style}]{share:.1%}[/]"


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e3:,.2f} s" if value >= 1e3 else f"{value:.4g} ms"


def _large(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g} {unit}"
    return f"{value:,.6g}"


#: Columns of the table: what stands above, and what stands in it.
_COLUMNS: tuple[_Column, ...] = (
    ("requests", lambda line: f"{line['requests']:,}"),
    ("not ok", _not_ok),
    ("on target", _attained),
    ("TTFT p50", lambda line: _ms(line["ttft_ms"]["p50"])),
    ("p99", lambda line: _ms(line["ttft_ms"]["p99"])),
    ("TPOT p50", lambda line: _ms(line["tpot_ms"]["p50"])),
    ("total p99", lambda line: _ms(line["total_ms"]["p99"])),
    ("hold p99", lambda line: _ms(line["held_ms"]["p99"])),
    ("out tok/s", lambda line: _large(line["output_tokens_per_s"])),
    ("tokens in", lambda line: _large(line["input_tokens"])),
    ("out", lambda line: _large(line["output_tokens"])),
    ("GPU s", lambda line: _large(line["gpu_seconds"])),
    ("cost", lambda line: _large(line["cost"])),
)

#: Columns that go first when there is no room for all, the first of them first; those not here stay.
_IMPORTANCE = {
    name: number
    for number, name in enumerate(
        (
            "hold p99",
            "out tok/s",
            "total p99",
            "GPU s",
            "tokens in",
            "out",
            "TPOT p50",
            "cost",
            "p99",
            "not ok",
        )
    )
}


def _number(value: Any) -> str:
    """Plainly: no exponents, nothing for what is not known."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")
    return str(value)


def _put(text: str, file: Path | None) -> None:
    if file is None or str(file) == "-":
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    click.echo(f"written: {file}", err=True)
