"""`steersman init`: writes a first configuration by asking the given backends what they are.

Owns the options, the addresses as people write them, and what is said when a backend is silent.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from extproc import engines
from extproc.addresses import joined, port_of
from extproc.cli.options import examples, fail, json_option, print_json
from extproc.config.places import DEFAULT_FILE, FILE_VARIABLE

if TYPE_CHECKING:
    from extproc.cli.first_config import FirstPool, FoundBackend, Places
    from extproc.doctor.evidence import Backend, Failed
    from extproc.upstream import ReplicaAccess

ASK_S_MAX = 5.0
ASKED_AT_ONCE = 32
#: What engines answer while they load their weights, and how long that is waited for.
LOADING = 503
LOADING_S_MAX = 300.0
LOADING_LOOK_S = 1.0
BACKENDS_MAX = 1_000
#: Ports tried for the gateway, Envoy's admin port and the service, the first that is free.
LISTEN_PORTS = (8080, 8081, 8088, 8888, 10080)
ADMIN_PORTS = (9901, 9902, 19901)
SERVICE_PORTS = (50051, 50061, 50071)


@dataclass(frozen=True, slots=True)
class Target:
    """An address to ask; `host` is the name that it was given by. With `tls` the address is that name."""

    address: str
    host: str
    tls: bool = False
    path_prefix: str = ""


@click.command(
    "init",
    epilog=examples(
        "steersman init 10.0.0.1:8080 10.0.0.2:8080",
        "steersman init http://localhost:8000 -o steersman.yaml --tenant acme",
        "steersman init https://llm.internal/openai --ca ca.pem --engine-key-file key   # TLS and a key",
        "steersman init llama.internal:8000 --dns         # keep the name; its replicas come and go",
        "steersman init 10.0.0.9:8080 --engine tgi --model meta-llama/Llama-3.1-8B-Instruct   # it is not "
        "up yet",
        "steersman init 10.0.0.1:8080 --json | jq -r .key",
    ),
)
@click.argument("backends", metavar="[BACKEND]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    help="The file to write; - prints it.",
)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The authority of https:// backends; the system's when left out.",
)
@click.option(
    "--engine-key-file",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the backends' own key.",
)
@click.option("--tenant", default="default", show_default=True, help="The name of the first tenant.")
@click.option("--engine", type=click.Choice(engines.names()), help="What backends run that do not say it.")
@click.option("--model", "models", multiple=True, help="What backends serve that do not say it. Repeatable.")
@click.option(
    "--listen", metavar="IP:PORT", help="Where clients connect.  [default: 127.0.0.1:8080, or a free port]"
)
@click.option("--dns", "keep_names", is_flag=True, help="Keep host names, and resolve them again and again.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask whether to write.")
@json_option
def command(
    backends: tuple[str, ...],
    file: Path,
    ca: Path | None,
    key_file: Path | None,
    tenant: str,
    engine: str | None,
    models: tuple[str, ...],
    listen: str | None,
    keep_names: bool,
    force: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write a first configuration by asking backends what they are.

    BACKEND is ip:port, host:port or a URL of a server of a kind that --engine lists. Replicas of the same
    model become a pool; a tenant is made with a new key, which is shown once and kept nowhere. A file that is
    there is never written over without --force. Beside it lies FILE.schema.json, from which editors complete
    (YAML's language server reads the first line); 'steersman check --schema' prints a newer one.
    Exits 1 when a backend does not answer or is none of these,
    unless --engine and --model say what it is.
    """
    from extproc.cli.first_config import GroupingError, grouped, plain, text
    from extproc.cli.tenant_key import new_key
    from extproc.config.load import ConfigError, loads
    from extproc.config.schema import schema
    from extproc.core.tenant import hash_key

    printed = str(file) == "-"
    asks = sys.stdin.isatty() and sys.stdout.isatty() and not (yes or as_json or printed)
    if not backends and asks:
        backends = tuple(click.prompt("Backends (ip:port or URL, with blanks between)").split())
    if not backends:
        raise click.UsageError("name the backends, such as: steersman init 10.0.0.1:8080 10.0.0.2:8080")
    if file.exists() and not printed and not force:
        fail(f"{file} is there already; choose another file with -o, or write over it with --force")
    targets = _targets(backends)
    replicas = _ask(targets, Reached(ca=ca, key_file=key_file), engine=engine, models=models)
    try:
        pools = grouped(replicas, keep_names=keep_names)
    except GroupingError as error:
        fail(str(error))
    key = new_key()
    places = _places(listen, targets)
    schema_file = file.with_suffix(".schema.json")
    written = text(
        pools,
        places=places,
        tenant=tenant,
        key_sha256=hash_key(key),
        schema="" if printed else schema_file.name,
    )
    try:
        loads(written, name=str(file))
    except ConfigError as error:
        fail(*(f"{each.path}: {each.message}" for each in error.problems), code=2)
    if asks:
        for line in _told(pools):
            click.echo(line)
        if not click.confirm(f"Write {file}?", default=True):
            fail("nothing was written")
    if printed:
        click.echo(written, nl=False)
        click.echo(f"key of tenant {tenant}, shown once: {key}", err=True)
        return
    try:
        _write(schema_file, json.dumps(schema(), indent=2) + "\n")
        _write(file, written)
    except OSError as error:
        fail(f"{file}: cannot be written: {error.strerror}")
    if as_json:
        print_json(
            {
                "file": str(file),
                "url": f"http://{places.listen}",
                "tenant": tenant,
                "key": key,
                "pools": plain(pools),
            }
        )
        return
    if not asks:
        for line in _told(pools):
            click.echo(line)
    for line in _next(file, places, pools, tenant=tenant, key=key):
        click.echo(line)


def _targets(backends: Sequence[str]) -> list[Target]:
    """Every address that the backends stand for, each once; exits 1 for a name that cannot be resolved."""
    found: dict[str, Target] = {}
    silent = []
    for given in backends:
        host, port, tls, prefix = _parsed(given)
        if tls:
            address = joined(host, port)
            found.setdefault(address, Target(address, host, tls, prefix))
            continue
        try:
            addresses = [str(ip_address(host))]
            name = ""
        except ValueError:
            name = "" if host == "localhost" else host
            try:
                told = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as error:
                silent.append(f"{given}: {host} cannot be resolved: {error.strerror or error}")
                continue
            addresses = list(dict.fromkeys(str(each[4][0]) for each in told))
            if host == "localhost":
                # Whatever it resolves to first, engines listen on IPv4 more often.
                addresses = ["127.0.0.1"]
        for each in addresses:
            address = joined(each, port)
            found.setdefault(address, Target(address, name))
    if silent:
        fail(*silent)
    if len(found) > BACKENDS_MAX:
        raise click.UsageError(f"{len(found)} backends; at most {BACKENDS_MAX} are asked")
    return list(found.values())


def _parsed(given: str) -> tuple[str, int, bool, str]:
    """Host, port, whether by TLS, and path before the engine's own, of what a person wrote."""
    parts = urlsplit(given if "://" in given else f"http://{given}")
    tls = parts.scheme == "https"
    if tls and re.fullmatch(r"[0-9.]+|.*:.*", parts.hostname or ""):
        raise click.UsageError(f"{given}: a certificate has a name; write https://NAME, and not an address")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise click.UsageError(f"{given!r} is no backend; write ip:port, host:port or http(s)://host:port")
    if port is None:
        if "://" not in given:
            raise click.UsageError(f"{given} has no port; write {given}:8080")
        port = 443 if tls else 80
    # OpenAI's base address ends so, and it is the path's own beginning.
    prefix = parts.path.rstrip("/").removesuffix("/v1") if tls else ""
    return host, port, tls, prefix


@dataclass(frozen=True, slots=True)
class Reached:
    """How backends are reached."""

    ca: Path | None = None
    key_file: Path | None = None

    def upstream(self, target: Target) -> dict[str, Any]:
        """As the file has it."""
        found: dict[str, Any] = {}
        if target.tls:
            found["tls"] = {"ca": str(self.ca.resolve())} if self.ca is not None else {}
        if target.path_prefix:
            found["path_prefix"] = target.path_prefix
        if self.key_file is not None:
            found["key"] = {"file": str(self.key_file.resolve())}
        return found

    def access(self, target: Target) -> ReplicaAccess:
        """The same, read; exits 2 where a file cannot be used."""
        from extproc.upstream import ReplicaAccess, client_context

        try:
            context = client_context(ca=str(self.ca) if self.ca is not None else None) if target.tls else None
        except OSError as error:
            fail(f"{self.ca}: holds no certificates: {error}; write a PEM file", code=2)
        key = self.key_file.read_text(errors="replace").strip() if self.key_file is not None else ""
        if self.key_file is not None and re.fullmatch(r"[!-~]{1,4096}", key) is None:
            fail(f"{self.key_file}: is not one word of 1 to 4,096 printable ASCII characters", code=2)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return ReplicaAccess(
            context=context, path_prefix=target.path_prefix, headers=headers, keyed=bool(key)
        )


def _ask(
    targets: Sequence[Target], reached: Reached, *, engine: str | None, models: tuple[str, ...]
) -> list[FoundBackend]:
    """What each is; exits 1 with every one that cannot be told."""
    from extproc.cli.first_config import FoundBackend
    from extproc.doctor.evidence import Backend, Failed

    with ThreadPoolExecutor(min(ASKED_AT_ONCE, len(targets))) as pool:
        answers = list(pool.map(lambda one: _look(one.address, reached.access(one)), targets))
    replicas, problems = [], []
    for target, seen in zip(targets, answers, strict=True):
        where = f"{target.host} ({target.address})" if target.host else target.address
        if isinstance(seen, Failed):
            if engine is None or not models:
                problems.append(f"{where} does not answer: {seen.why}")
                continue
            click.echo(f"{where} does not answer ({seen.why}): taken as {engine}, as you say", err=True)
            seen = Backend(address=target.address)
        seen = replace(seen, engine=seen.engine or engine, models=seen.models or tuple(models))
        if seen.engine is None:
            problems.append(f"{where} answers, but is no {engines.titles()} server that says so")
        elif not seen.models:
            problems.append(f"{where} ({seen.engine}) does not say which model it serves")
        else:
            way = reached.upstream(target)
            replicas.append(FoundBackend(seen=seen, host="" if target.tls else target.host, upstream=way))
    if problems:
        fail(
            *problems,
            "nothing was written; start what does not answer, or say what it is with --engine and --model",
        )
    return replicas


def _look(address: str, access: ReplicaAccess) -> Backend | Failed:
    """What one is; while it answers 503, as engines do while they load their weights, it is waited for."""
    from extproc.doctor.backend import backend
    from extproc.doctor.evidence import Failed

    deadline_s = time.monotonic() + LOADING_S_MAX
    told = False
    while True:
        url = f"{access.scheme}://{address}"
        seen = backend(url, timeout_s=ASK_S_MAX, address=address, access=access)
        loads_yet = not isinstance(seen, Failed) and seen.engine is None and seen.health == LOADING
        if not loads_yet or time.monotonic() > deadline_s:
            return seen
        if not told:
            told = True
            click.echo(f"{address} answers 503, as while it loads its model: waiting for it", err=True)
        time.sleep(LOADING_LOOK_S)


def _places(listen: str | None, targets: Sequence[Target]) -> Places:
    """Free ports on loopback, the usual ones first; none of a backend's here."""
    from extproc.cli.first_config import Places

    taken = {port_of(each.address) for each in targets}

    def free(ports: Sequence[int]) -> int:
        for port in ports:
            if port not in taken and _is_free(port):
                taken.add(port)
                return port
        return ports[0]

    return Places(
        listen=listen or f"127.0.0.1:{free(LISTEN_PORTS)}",
        envoy_admin=f"127.0.0.1:{free(ADMIN_PORTS)}",
        service=f"127.0.0.1:{free(SERVICE_PORTS)}",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _told(pools: Sequence[FirstPool]) -> list[str]:
    lines = []
    for pool in pools:
        lines.append(f"pool {click.style(pool.name, bold=True)}: {', '.join(pool.models)} on {pool.engine}")
        for each in pool.replicas:
            seen = each.seen
            facts = [
                f"{seen.max_concurrent} at once" if seen.max_concurrent else "does not say how many at once"
            ]
            facts += [f"{seen.kv_capacity_tokens:,} KV tokens"] if seen.kv_capacity_tokens else []
            facts += [seen.version] if seen.version else []
            lines.append(f"  {seen.address}  {', '.join(facts)}")
    return lines


def _next(file: Path, places: Places, pools: Sequence[FirstPool], *, tenant: str, key: str) -> list[str]:
    model = pools[0].models[0]
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    flag = "" if str(file) == DEFAULT_FILE else f" -f {file}"
    return [
        f"{file} is written",
        f"key of tenant {tenant}, shown once: {click.style(key, bold=True)}",
        "",
        f"  steersman up{flag}",
        f"  curl http://{places.listen}/v1/chat/completions -H 'Authorization: Bearer {key}' \\",
        f"    -H 'Content-Type: application/json' -d '{body}'",
        f"  steersman doctor{flag}",
        *(
            []
            if not flag or places.service.endswith(f":{SERVICE_PORTS[0]}")
            else ["", f"its port is not the usual one: export {FILE_VARIABLE}={file}"]
        ),
    ]
