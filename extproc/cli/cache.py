"""`steersman cache`: what the response cache holds and saves, what of it is purged, and why a request is not
in it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from extproc.cli.completion import complete_models, complete_tenants
from extproc.cli.options import examples, json_option, print_json
from extproc.cli.status import address_option
from extproc.cli.tenants import asked

#: Scopes and tenants shown; all are in --json.
ROWS_MAX = 20
#: Where questions in other words are.
KEPT: Final = {"memory": "in memory", "file": "in memory and on the disk", "redis": "in Redis"}
MIB = 1024 * 1024
_file = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.group("cache", epilog=examples("steersman cache stats", "steersman cache purge --tenant acme"))
def command() -> None:
    """Show what the response cache holds and saves, and purge it (docs/caching.md).

    Exits 1 when no service answers, or when it has no cache.
    """


@command.command(
    "stats", epilog=examples("steersman cache stats", "steersman cache stats --json | jq .saved")
)
@address_option
@json_option
def stats(address: str | None, as_json: bool) -> None:
    """Show answers, bytes, hits and misses by tenant, and what hits saved."""
    found = _ask(address, "Cache", {})
    if as_json:
        print_json(found)
    else:
        show(found)


@command.command(
    "purge",
    epilog=examples(
        "steersman cache purge --tenant acme --model llama",
        "steersman cache purge --older 3600",
        "steersman cache purge --all",
    ),
)
@address_option
@click.option("--tenant", shell_complete=complete_tenants, help="Answers that were made for this tenant.")
@click.option("--model", shell_complete=complete_models, help="Answers of this model.")
@click.option("--pool", help="Answers of this pool.")
@click.option("--key", help="One answer, by its key (`steersman cache explain`).")
@click.option("--older", type=click.FloatRange(min=0), metavar="SECONDS", help="Answers at least so old.")
@click.option("--all", "everything", is_flag=True, help="All answers.")
@json_option
def purge(
    address: str | None,
    tenant: str | None,
    model: str | None,
    pool: str | None,
    key: str | None,
    older: float | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Forget answers: those that fit every option that is given.

    Answers that are on their way are not kept then either. In memory each service has a cache of its own; in
    Redis (cache.store) there is one, and all of them keep to it.
    """
    order = {"tenant": tenant, "model": model, "pool": pool, "key": key, "older_s": older}
    order = {name: value for name, value in order.items() if value is not None}
    for name, value in order.items():
        if value == "":
            # An unset variable of a script must not purge more than was meant.
            raise click.UsageError(f"--{name} is empty; leave it out to purge those of every {name}")
    if older is not None and not math.isfinite(older):
        raise click.UsageError("--older is a number of seconds")
    if not order and not everything:
        raise click.UsageError("say what: --tenant, --model, --pool, --key, --older, or --all")
    found = _ask(address, "PurgeCache", {**order, "all": everything})
    if as_json:
        print_json(found)
    else:
        click.echo(
            "the store is away; it is purged when it is back"
            if found["later"]
            else f"{_answers(found['purged'])} purged"
        )


@command.command(
    "explain",
    epilog=examples(
        "steersman cache explain request.json --tenant acme",
        "steersman cache explain body.json --path /generate --tenant acme --json",
    ),
)
@click.argument("body_file", metavar="FILE", type=_file)
@address_option
@click.option(
    "--tenant",
    shell_complete=complete_tenants,
    help="Whose request it is; may be left out where there is one tenant only.",
)
@click.option("--model", shell_complete=complete_models, help="The model, where the body names none.")
@click.option("--path", default="/v1/chat/completions", show_default=True, help="The request's route.")
@json_option
def explain(
    body_file: Path, address: str | None, tenant: str | None, model: str | None, path: str, as_json: bool
) -> None:
    """Say whether a request's answer would be cached, why not, and what is kept of it.

    FILE is the request's JSON body; - reads stdin. Nothing is sent anywhere.
    """
    raw = sys.stdin.buffer.read() if str(body_file) == "-" else body_file.read_bytes()
    shown = "stdin" if str(body_file) == "-" else str(body_file)
    try:
        body = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{shown} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not body.strip():
        raise click.UsageError(f"{shown} is empty; give it the request's JSON body")
    found = _ask(address, "Cache", {"tenant": tenant, "model": model, "path": path, "body": body})
    if as_json:
        print_json(found)
        return
    for line in explained(found):
        click.echo(line)


def show(found: Mapping[str, Any]) -> None:
    """Draw the figures."""
    if not found["on"]:
        click.echo("there is no cache: the configuration has no section cache (docs/caching.md)")
        return
    click.echo(
        f"{_answers(found['answers'])}, {found['bytes'] / MIB:.1f} of {found['bytes_max'] / MIB:.0f} MiB; "
        f"{found['evicted']} went for room, {found['awaited']} are awaited"
    )
    for scope, each in list(found["scopes"].items())[:ROWS_MAX]:
        click.echo(f"  {scope}: {_answers(each['answers'])}, {each['bytes'] / MIB:.1f} MiB")
    if found["away"]:
        click.echo("the store is away: nothing is answered from it, and nothing kept")
    for reason, count in found["refused"].items():
        click.echo(f"{count} entries of the store were refused: {reason}")
    for pool, several in found["split"].items():
        click.echo(f"pool {pool} is not cached: its replicas run different things: {', '.join(several)}")
    for tenant, counts in list(found["requests"].items())[:ROWS_MAX]:
        saved = found["saved"].get(tenant, {})
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        click.echo(f"{tenant}: {outcomes}")
        if saved.get("hits"):
            click.echo(
                f"  saved {saved['input_tokens']} input and {saved['output_tokens']} output tokens, "
                f"{saved['gpu_ms'] / 1e3:.1f} s of replicas"
            )
    if semantic := found.get("semantic"):
        for line in in_other_words(semantic):
            click.echo(line)
    fills = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found["fills"].items()))
    click.echo(f"answers that came: {fills or 'none yet'}")


def _answers(count: int) -> str:
    return f"{count} answer{'s' * (count != 1)}"


def in_other_words(found: Mapping[str, Any]) -> list[str]:
    """The semantic cache's lines: what is kept, what was asked, and how often it would have been wrong."""
    there = "" if found["up"] else "; its process is not there"
    there += "; the store is away: nothing is given" if found["away"] else ""
    place = KEPT[found["kept"]]
    lines = [
        f"in other words: {found['questions']} questions kept {place}, {found['bytes'] / MIB:.1f} MiB{there}"
    ]
    for tenant, counts in list(found["requests"].items())[:ROWS_MAX]:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        lines.append(f"  {tenant}: {outcomes}")
    for scope, each in list(found["scopes"].items())[:ROWS_MAX]:
        if each["checked_hits"]:
            off = "; OFF" if each["off"] else ""
            lines.append(
                f"  {scope}: {each['wrong']} of {each['checked_hits']} checked answers were wrong, "
                f"at most {100 * each['wrong_at_most']:.1f} % of all (95 %){off}"
            )
    titles = {
        "refused": "guards refused",
        "checks": "compared answers",
        "store_refused": "refused of the store",
    }
    for name, title in titles.items():
        if counts := ", ".join(f"{count} {kind}" for kind, count in sorted(found[name].items())):
            lines.append(f"  {title}: {counts}")
    return lines


def explained(found: Mapping[str, Any]) -> list[str]:
    """An explanation's lines."""
    head = f"{found['tenant']}, model {found['model']}, pool {found['pool']}: "
    if not found["cached"]:
        return [f"{head}not cached: {found['why']}"]
    lines = [head + (f"cached {found['why']}" if found["why"] else "cached")]
    lines.append(f"  key {found['key']}, of {found['scope']}")
    if words := found.get("words"):
        like = f"compared, with {words['questions']} kept questions that differ in the words alone"
        lines.append(f"  in other words: {words['why'] or like}")
    kept = found["kept"]
    if kept is None:
        lines.append("  no answer is kept")
    else:
        lines.append(
            f"  an answer of {kept['bytes']} bytes ({kept['packed_bytes']} packed) is {kept['age_s']:.0f} s "
            f"old, made for {kept['made_for']}, given {kept['hits']} times; it goes in {kept['left_s']:.0f} s"
        )
    return lines


def _ask(address: str | None, name: str, order: dict[str, Any]) -> dict[str, Any]:
    async def ask(link: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await link.order(name, order)
        return answer

    try:
        return asked(address, ask)
    except ValueError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
