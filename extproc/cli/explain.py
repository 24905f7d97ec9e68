"""`steersman explain`: why a request went where it went, or where a given one would go."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from extproc.cli.completion import complete_models, complete_tenants
from extproc.cli.options import examples, json_option, print_json
from extproc.cli.status import address_option
from extproc.cli.tenants import asked

if TYPE_CHECKING:
    from rich.console import Console

#: Endpoints shown; the rest is counted. All are in --json.
ROWS_MAX = 40
#: A larger request is not sent.
BODY_BYTES_MAX = 64 * 1024 * 1024
#: Colours of verdicts by their first word.
STYLES = {"chosen": "bold green", "waits": "yellow", "suspect": "yellow", "removed": "red"}

#: What is shown of an endpoint's forecast.
FORECAST = {"ttft_ms": "TTFT", "tpot_ms": "TPOT"}
#: A held request's times, as they are called in its line.
_TIMES = (("waits for", "waited_ms"), ("first token due in", "due_in_ms"), ("429 in", "shed_in_ms"))

_file = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command(
    "explain",
    epilog=examples(
        "steersman explain 7ad60cad03d8-46",
        "steersman explain --tenant acme --model llama --prompt-file prompt.txt --max-tokens 300",
        "echo 'Why is the sky blue?' | steersman explain --tenant acme --prompt-file -",
        "steersman explain --body request.json --path /v1/completions --json",
    ),
)
@click.argument("request_id", metavar="[ID]", required=False)
@address_option
@click.option(
    "--tenant",
    shell_complete=complete_tenants,
    help="Whose request it is; may be left out where there is one tenant only.",
)
@click.option(
    "--model",
    shell_complete=complete_models,
    help="The model or family; also given as x-model where the body names none.",
)
@click.option("--prompt-file", type=_file, help="A prompt to ask about, as one user message; - reads stdin.")
@click.option("--body", "body_file", type=_file, help="A request's JSON body to ask about; - reads stdin.")
@click.option("--max-tokens", type=click.IntRange(min=0), help="With --prompt-file: the output asked for.")
@click.option("--path", default="/v1/chat/completions", show_default=True, help="With --body: its route.")
@json_option
def command(
    request_id: str | None,
    address: str | None,
    tenant: str | None,
    model: str | None,
    prompt_file: Path | None,
    body_file: Path | None,
    max_tokens: int | None,
    path: str,
    as_json: bool,
) -> None:
    """Show every endpoint's score, its terms and what removed it, for one request.

    ID is a reservation's (`steersman status --json` lists the last), or Envoy's x-request-id: of a request
    that waits, runs or ran a moment ago. Without one, give a request with --prompt-file or --body: it is read
    as if it came now, and nothing is sent anywhere. Exits 1 for an unknown ID or when no service answers.
    """
    given = [each for each in (request_id, prompt_file, body_file) if each is not None]
    if len(given) != 1:
        raise click.UsageError("give one of: an ID, --prompt-file, --body")
    order: dict[str, Any]
    if request_id is not None:
        order = {"id": request_id}
    else:
        if prompt_file is not None:
            path, body = "/v1/chat/completions", _chat(_read(prompt_file), model, max_tokens)
        else:
            assert body_file is not None
            body = _read(body_file)
        order = {"tenant": tenant, "path": path, "body": body, "model": model}

    async def ask(link: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await link.order("Explain", order)
        return answer

    try:
        found = asked(address, ask)
    except ValueError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    show(found, Console())


def show(found: Mapping[str, Any], console: Console) -> None:
    """Draw an explanation: what became of the request, and a line for each endpoint; of a past one also what
    would be done with it now."""
    for name, value in facts(found):
        console.print(f"[dim]{name:<9}[/] {value}", highlight=False)
    _table(found["endpoints"], found["scores_of"], console)
    if (now := found["now"]) is not None:
        console.print(f"\n[dim]{'now':<9}[/] the same request {_plain(now['outcome'])}", highlight=False)
        _table(now["endpoints"], "now", console)


def _table(endpoints: list[dict[str, Any]], of: str, console: Console) -> None:
    from rich.table import Table

    if not endpoints:
        return
    shown = endpoints[:ROWS_MAX]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("endpoint", "verdict", f"score ({of})", f"forecast ({of})", f"terms ({of})"):
        table.add_column(head, justify="right" if head.startswith("score") else "left", overflow="fold")
    for each in shown:
        style = STYLES.get(each["verdict"].partition(" ")[0], "")
        verdict = f"[{style}]{each['verdict']}[/]" if style else each["verdict"]
        why = "".join(f"\n[dim]{_plain(reason)}[/]" for reason in each["why"])
        score = "–" if each["score"] is None else f"{each['score']:,.6g}"
        expected = "  ".join(
            f"{label} {_value(each['forecast'][name])} ms"
            for name, label in FORECAST.items()
            if name in each["forecast"]
        )
        terms = "  ".join(f"{name} {_value(value)}" for name, value in each["terms"].items())
        table.add_row(each["address"], verdict + why, score, expected, terms)
    console.print(table, highlight=False)
    if len(endpoints) > len(shown):
        console.print(f"[dim]… and {len(endpoints) - len(shown)} more; --json has them all[/]")


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines above the table."""
    lines = [("request", f"{found['id'] or 'as if it came now'}  tenant {_plain(found['tenant'])}")]
    if found["age_ms"]:
        lines[0] = ("request", f"{lines[0][1]}, {found['age_ms'] / 1e3:.1f} s ago")
    if found.get("place"):
        lines.append(("place", _plain(found["place"])))
    lines.append(("outcome", f"[bold]{_plain(found['outcome'])}[/]"))
    if found["pool"]:
        arm = f", arm {found['arm']}" if found["arm"] else ""
        lines.append(
            ("pool", f"{found['pool']}, model {_plain(found['model'])}, by {found['strategy']}{arm}")
        )
    if (spilled := found.get("spilled")) is not None:
        lines.append(("spilled", f"from pool {_plain(spilled['from'])}: {spilled['why']}"))
    if found.get("site"):
        lines.append(("site", _plain(found["site"])))
    if (family := found["family"]) is not None:
        told = ", ".join(f"{name} {value:g}" for name, value in family["features"].items() if value)
        shifted = (
            f"; {family['shifted']}: {family['wished']} → {family['model']}" if family["shifted"] else ""
        )
        lines.append(
            (
                "family",
                f"{_plain(family['family'])}: score {family['score']:.2f} → {family['wished']}{shifted}",
            )
        )
        lines.append(("", f"[dim]{told}[/]"))
    if work := found["work"]:
        told = ", ".join(f"{name} {_value(value)}" for name, value in work.items())
        lines.append(("predicted", told))
    if (held := found["held"]) is not None:
        came = f"{held['before']} of {held['waiting'] - 1} others came before"
        times = [f"{name} {held[key]:.0f} ms" for name, key in _TIMES]
        lines.append(("queue", "; ".join((came, *times))))
    if found["degraded"]:
        lines.append(("degraded", found["degraded"]))
    return lines


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _plain(text: str) -> str:
    """Text that a client or a file gave, without meaning for rich."""
    from rich.markup import escape

    return escape(text)


def _read(path: Path) -> str:
    data = sys.stdin.buffer.read(BODY_BYTES_MAX + 1) if str(path) == "-" else path.read_bytes()
    if len(data) > BODY_BYTES_MAX:
        raise click.UsageError(f"{path} is larger than {BODY_BYTES_MAX} bytes")
    return data.decode("utf-8", "replace")


def _chat(prompt: str, model: str | None, max_tokens: int | None) -> str:
    named = {"model": model} if model else {}
    limit = {} if max_tokens is None else {"max_tokens": max_tokens}
    return json.dumps({**named, "messages": [{"role": "user", "content": prompt}], **limit})
