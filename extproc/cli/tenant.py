"""`steersman tenant`: one tenant's use, its quotas, and its keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from extproc.cli.changing import asked_why, make, tell, tenant_index, who_option, why_option
from extproc.cli.completion import complete_classes, complete_models, complete_tenants
from extproc.cli.options import config_option, examples, json_option, load_or_exit, print_json
from extproc.cli.status import address_option
from extproc.cli.tenant_key import key_group, key_index
from extproc.cli.tenants import asked, print_tenants
from extproc.config.docstrings import described
from extproc.config.load import ConfigError, loads
from extproc.config.model import Config, Quota
from extproc.history.surgery import Edit, EditError, Put, Remove, edited
from extproc.history.versions import read_text, user

#: What takes a limit away again.
NONE = "none"
#: A dry run looks back this far at the most (the service remembers no more).
MINUTES_MAX = 60


@click.group(
    "tenant",
    epilog=examples(
        "steersman tenant show acme",
        'steersman tenant set acme --requests-per-minute 600 --why "they pay for it"',
        'steersman tenant key new acme --expires 90d --why "rotation"',
    ),
)
def command() -> None:
    """Show or change a tenant: quotas, class, keys."""


command.add_command(key_group)


@command.command(
    "show", epilog=examples("steersman tenant show acme", "steersman tenant show acme --json | jq .limits")
)
@click.argument("name", shell_complete=complete_tenants)
@address_option
@json_option
def show(name: str, address: str | None, as_json: bool) -> None:
    """Show what a tenant uses of what it may, from a running service."""
    try:
        found = asked(address, lambda link: link.order("Tenant", {"name": name}))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json(found)
    else:
        print_tenants({name: found})


def _number(value: str | None, name: str) -> float | int | str | None:
    if value is None or value == NONE:
        return value
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no number; write one, or '{NONE}'", param_hint=name) from None


def quota_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each limit that a quota has."""
    texts = described(Quota)
    for name in reversed(Quota.model_fields):
        option = f"--{name.replace('_', '-')}"
        about = texts[name].partition(".")[0]
        function = click.option(option, name, metavar=f"N|{NONE}", help=f"{about}.")(function)
    return function


@command.command(
    "set",
    epilog=examples(
        'steersman tenant set acme --output-tokens-per-minute 200000 --burst 0.5 --why "they pay for it"',
        'steersman tenant set acme --requests-per-minute none --why "tokens are enough of a limit"',
        "steersman tenant set acme --requests-per-minute 60 --shadow      # what would it have refused?",
        'steersman tenant set acme --class premium --weight 2 --why "contract of June"',
    ),
)
@click.argument("name", shell_complete=complete_tenants)
@quota_options
@click.option("--model", shell_complete=complete_models, help="Its quota of one model instead.")
@click.option("--key", help="The quota of one of its keys (by name or hash) instead.")
@click.option("--class", "service_class", shell_complete=complete_classes, help="Its service class.")
@click.option("--weight", type=float, help="Its share against other tenants of its class.")
@click.option("--held-max", type=int, help="Its requests held at once.")
@click.option("--shadow", is_flag=True, help="Change nothing: count what the quota had refused lately.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, MINUTES_MAX, min_open=True),
    default=MINUTES_MAX,
    show_default=True,
    help="How far --shadow looks back.",
)
@json_option
@address_option
@config_option
@why_option
@who_option
def set_(
    name: str,
    model: str | None,
    key: str | None,
    service_class: str | None,
    weight: float | None,
    held_max: int | None,
    shadow: bool,
    minutes: float,
    as_json: bool,
    address: str | None,
    file: Path,
    why: str,
    who: str,
    **quota: str | None,
) -> None:
    """Change a tenant's quota or its place among others, in the file; a running service takes it live.

    A limit of 'none' is taken away. Exits 2 with every mistake when the result would not be good, and
    changes nothing then.
    """
    limits = {limit: _number(value, limit) for limit, value in quota.items() if value is not None}
    own = {"class": service_class, "weight": weight, "held_max": held_max}
    settings = {setting: value for setting, value in own.items() if value is not None}
    if not limits and not settings:
        raise click.UsageError("nothing to change; give a limit, --class, --weight or --held-max")
    if model and key:
        raise click.UsageError("give --model or --key, not both")

    def edits(config: Config) -> Sequence[Edit]:
        at = tenant_index(config, name)
        where, before = _place(config, at, model, key)
        found: list[Edit] = [Put(("tenants", at, setting), value) for setting, value in settings.items()]
        for limit, value in limits.items():
            path = ("tenants", at, *where, limit)
            if value != NONE:
                found.append(Put(path, value))
            elif before is not None and limit in before.model_fields_set:
                found.append(Remove(path))
        return found

    if shadow:
        _what_if(file, edits, name, model, key, address=address, minutes=minutes, as_json=as_json)
        return
    done = make(file, edits, why=asked_why(why), who=who, command=f"tenant set {name}")
    tell(done, file, as_json=as_json)


@command.command(
    "credit",
    epilog=examples(
        'steersman tenant credit acme --output-tokens 20000 --why "incident of June 3rd"',
        'steersman tenant credit acme --everything --why "an engine miscounted"',
    ),
)
@click.argument("name", shell_complete=complete_tenants)
@click.option("--requests", type=click.IntRange(min=0), default=0, help="Requests to give back.")
@click.option("--input-tokens", type=click.IntRange(min=0), default=0, help="Input tokens to give back.")
@click.option("--output-tokens", type=click.IntRange(min=0), default=0, help="Output tokens to give back.")
@click.option("--gpu-seconds", type=click.FloatRange(min=0), default=0.0, help="GPU seconds to give back.")
@click.option("--cost", type=click.FloatRange(min=0), default=0.0, help="Of its budgets, in their currency.")
@click.option("--everything", is_flag=True, help="All that it has used of every limit.")
@click.option("--scope", default="", help="tenant, model:NAME or key:ID; all of its quotas when left out.")
@json_option
@address_option
@why_option
@who_option
def credit(
    name: str,
    scope: str,
    everything: bool,
    as_json: bool,
    address: str | None,
    why: str,
    who: str,
    **amounts: float,
) -> None:
    """Forgive a tenant what it has used, in a running service; the audit log says so.

    Limits stay as they are: what is given back may be used again, at most all that was used.
    """
    order = {
        "tenant": name,
        "scope": scope,
        "amounts": amounts,
        "everything": everything,
        "why": asked_why(why),
        "who": who or user(),
    }
    found = _ordered(address, "Credit", order)
    if as_json:
        print_json(found)
        return
    if not found["audited"]:
        click.echo("no audit log is configured: this is on record in the service's own log alone", err=True)
    print_tenants({name: found})


def _place(
    config: Config, at: int, model: str | None, key: str | None
) -> tuple[tuple[str | int, ...], Quota | None]:
    """Where a quota stands within its tenant, and what it is."""

    tenant = config.tenants[at]
    if model is not None:
        return ("model_quotas", model), tenant.model_quotas.get(model)
    if key is not None:
        number = key_index(tenant, key)
        return ("keys", number, "quota"), tenant.keys[number].quota
    return ("quota",), tenant.quota


def _what_if(
    file: Path,
    edits: Callable[[Config], Sequence[Edit]],
    name: str,
    model: str | None,
    key: str | None,
    *,
    address: str | None,
    minutes: float,
    as_json: bool,
) -> None:
    from extproc.history.changes import key_id

    config = load_or_exit(file)
    try:
        after = loads(edited(read_text(file), edits(config)), name=str(file))
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        raise SystemExit(2) from None
    except EditError as error:
        raise click.ClickException(str(error)) from None
    at = tenant_index(after, name)
    where, quota = _place(after, at, model, key)
    scope = "tenant"
    if where[0] == "model_quotas":
        scope = f"model:{model}"
    elif where[0] == "keys":
        scope = f"key:{key_id(after.tenants[at].keys[int(where[1])])}"
    plain = (quota or Quota()).model_dump(exclude_none=True)
    order = {"tenant": name, "scope": scope, "quota": plain, "minutes": minutes}
    found = _ordered(address, "Shadow", order)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['requests']} requests of {name} in the last {found['minutes']:g} minutes, "
        f"{found['refused_then']} of them refused by its quota"
    )
    for what, verdict in (("as it is", found["as_it_is"]), ("proposed", found["proposed"])):
        click.echo(f"{what}: {_verdict(verdict)}")
    click.echo("nothing was changed")


def _verdict(verdict: dict[str, Any]) -> str:
    never, always = verdict["never_idle"], verdict["always_idle"]
    text = f"{never['refused']} would be refused"
    if never["refused"] != always["refused"]:
        text += f" ({always['refused']} if capacity to borrow is always idle)"
    if never["by_limit"]:
        text += ": " + ", ".join(f"{count} by {limit}" for limit, count in never["by_limit"].items())
    return text


def _ordered(address: str | None, kind: str, order: dict[str, Any]) -> dict[str, Any]:
    """What a running service answers to an order; what it refuses is the command's own error."""
    try:
        found: dict[str, Any] = asked(address, lambda link: link.order(kind, order))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    return found
