"""Asks everybody once, side by side, and gives back the evidence.

Owns the addresses asked and the patience with each. Changes nothing; the prompt of a probe is sent only when
a key (or leave) was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from extproc import extras
from extproc.config.access import access_of
from extproc.config.engine_keys import engine_key
from extproc.config.load import ConfigError
from extproc.config.model import Config, PoolConfig
from extproc.config.places import address_of
from extproc.doctor.backend import backend
from extproc.doctor.evidence import (
    NO_PROBE,
    Backend,
    Elsewhere,
    EnvoySeen,
    Evidence,
    Failed,
    MachineSeen,
    ProbeSeen,
    RedisSeen,
    ServiceSeen,
)
from extproc.doctor.fetch import Fetched, fetch
from extproc.supervise.admin_link import AdminLink, Link
from extproc.supervise.asking import ServiceLink, ServiceRefusedError, ServiceSilentError, reachable

#: Patience with one question.
ASK_S_MAX: Final = 3.0
#: Patience with a probe: it waits for a replica like any other request.
PROBE_S_MAX: Final = 60.0
#: Between the two readings of a service's status, where there are two: agents that are refused try again
#: within 2 s.
READINGS_APART_S: Final = 2.2
#: A settled end is known this soon.
SETTLED_S_MAX: Final = 5.0
BACKENDS_AT_ONCE: Final = 32
#: Bytes that this control group may have, or `max`.
CGROUP_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
#: Envoy's counters that checks look at.
STATS: Final = (
    "^(access_logs|http\\.gateway\\.(ext_proc|lua)|.*\\.(ext_proc|lua)\\.|listener_manager|server\\.)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Whom to ask, and for what. None: what the configuration says."""

    service: str | None = None
    envoy_admin: str | None = None
    gateway: str | None = None
    key: str | None = None
    model: str | None = None
    probe: bool = False
    offline: bool = False


async def gather(config: Config, file: Path, wanted: Wanted) -> Evidence:
    """All evidence; takes a few seconds at the most, a probe aside."""
    now, machine = datetime.now(UTC), _machine(config)
    if wanted.offline:
        return Evidence(config=config, file=file, now=now, machine=machine)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(BACKENDS_AT_ONCE, thread_name_prefix="doctor") as pool:
        url = f"http://{reachable(wanted.gateway or config.gateway.listen)}"
        if wanted.gateway and "://" in wanted.gateway:
            url = wanted.gateway.rstrip("/")
        elif config.gateway.tls is not None:
            url = url.replace("http://", "https://", 1)
        services = asyncio.create_task(_services(config, wanted))
        asked = (
            loop.run_in_executor(pool, partial(_envoy, wanted.envoy_admin or config.gateway.envoy_admin)),
            loop.run_in_executor(pool, partial(_gateway, url)),
        )
        endpoints = [each.address for one in config.pools for each in one.endpoints]
        backends = [
            loop.run_in_executor(pool, partial(_backend, one, each.address))
            for one in config.pools
            for each in one.endpoints
        ]
        redis = asyncio.create_task(_redis(config))
        probe = await _probe(config, wanted, url, pool)
        envoy, gateway = await asyncio.gather(*asked)
        return Evidence(
            config=config,
            file=file,
            now=now,
            machine=machine,
            services=await services,
            envoy=envoy,
            gateway=gateway,
            backends=dict(zip(endpoints, await asyncio.gather(*backends), strict=True)),
            redis=await redis,
            probe=probe,
        )


def _backend(pool: PoolConfig, address: str) -> Backend | Failed:
    """A replica as the service and Envoy ask it; what cannot be read here is the reason."""
    try:
        access = access_of(pool, engine_key(pool))
    except ConfigError as error:
        problem = error.problems[0]
        return Failed(f"{problem.path}: {problem.message}")
    return backend(f"{access.scheme}://{address}", timeout_s=ASK_S_MAX, address=address, access=access)


async def _services(config: Config, wanted: Wanted) -> dict[str, ServiceSeen | Failed]:
    addresses = [wanted.service] if wanted.service else config.service_addresses
    found = await asyncio.gather(*(_service(config, address) for address in addresses))
    return dict(zip(addresses, found, strict=True))


def _link(config: Config, address: str) -> Link:
    """To a service, by the address by which Envoy finds it or by what was given."""
    if address.startswith(("http://", "https://")):
        return AdminLink(address)
    if config.service.run_dir is not None and address in config.service.listen[:1]:
        return ServiceLink(address_of(address, config.service.run_dir))
    return ServiceLink(address)


async def _service(config: Config, address: str) -> ServiceSeen | Failed:
    link, serving = _link(config, address), False
    try:
        # gRPC's errors share no useful type, and the status tells more.
        with contextlib.suppress(Exception):
            serving = await link.serving()
        before_ms = time.time() * 1000
        status = await link.status()
        after_ms = time.time() * 1000
        later = status
        if _in_doubt(status):
            await asyncio.sleep(READINGS_APART_S)
            later = await link.status()
    except ServiceRefusedError as error:
        return Elsewhere(str(error))
    except ServiceSilentError as error:
        if serving:
            return Elsewhere("it serves, and tells its figures on its own machine alone")
        if config.gateway.service_tls is not None and not address.startswith(("unix:", "http")):
            return Elsewhere("it asks for TLS, and tells its figures on its own machine alone")
        return Failed(str(error))
    finally:
        await link.close()
    unix_ms = status.get("unix_ms")
    ahead = None if not isinstance(unix_ms, int) else round(unix_ms - (before_ms + after_ms) / 2)
    return ServiceSeen(address=address, serving=serving, status=status, later=later, clock_ahead_ms=ahead)


def _in_doubt(status: Mapping[str, Any]) -> bool:
    """Whether something was refused, so that a second reading tells if it still is."""
    refused = any(name.startswith("rejected.") for name in status["telemetry"]["counts"])
    return refused or bool(status["roster"]["ads"].get("nacks"))


def _envoy(admin: str) -> EnvoySeen | Failed:
    url = f"http://{reachable(admin)}"
    pages: dict[str, Fetched] = {}
    before_ms = time.time() * 1000
    for name, path in (
        ("info", "/server_info"),
        ("dump", "/config_dump?include_eds"),
        ("clusters", "/clusters?format=json"),
        ("stats", f"/stats?format=json&filter={STATS}"),
    ):
        answer = fetch(url + path, timeout_s=ASK_S_MAX)
        if isinstance(answer, Failed):
            return answer
        if answer.status != 200 or not isinstance(answer.json(), dict):
            return Failed(
                f"what listens there answers {path} with status {answer.status}: no Envoy's admin port"
            )
        pages[name] = answer
    date_ms = pages["info"].date_ms
    stats = pages["stats"].json().get("stats", [])
    return EnvoySeen(
        admin=admin,
        server_info=pages["info"].json(),
        config_dump=pages["dump"].json(),
        clusters=pages["clusters"].json(),
        stats={each["name"]: each["value"] for each in stats if isinstance(each.get("value"), int)},
        # Its Date header has whole seconds: the middle of its second is the best guess.
        clock_ahead_ms=None if date_ms is None else round(date_ms + 500 - before_ms),
    )


def _gateway(url: str) -> tuple[int, str] | Failed:
    answer = fetch(f"{url}/health", timeout_s=ASK_S_MAX)
    return (
        answer if isinstance(answer, Failed) else (answer.status, answer.body[:500].decode(errors="replace"))
    )


async def _probe(config: Config, wanted: Wanted, url: str, pool: ThreadPoolExecutor) -> ProbeSeen | Failed:
    """One token through the gateway, streamed; then whether the service heard of its end."""
    if not (wanted.probe or wanted.key):
        return NO_PROBE
    link = _link(config, wanted.service or config.service_addresses[0])
    try:
        with contextlib.suppress(ServiceSilentError):
            return await _probed(config, wanted, url, link, pool)
        return Failed("the service does not answer, so that nothing could be learned from a prompt")
    finally:
        await link.close()


async def _probed(
    config: Config, wanted: Wanted, url: str, link: Link, pool: ThreadPoolExecutor
) -> ProbeSeen | Failed:
    before = await link.status()
    model = wanted.model or config.default_model
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stream": True}
    headers = {} if wanted.key is None else {"authorization": f"Bearer {wanted.key}"}
    began_s = time.monotonic()
    ask = partial(fetch, f"{url}/v1/chat/completions", timeout_s=PROBE_S_MAX, body=body, headers=headers)
    answer = await asyncio.get_running_loop().run_in_executor(pool, ask)
    if isinstance(answer, Failed):
        return answer
    elapsed_ms = (time.monotonic() - began_s) * 1000
    streamed = answer.headers.get("content-type", "").startswith("text/event-stream")
    settled = first = False
    until_s = time.monotonic() + SETTLED_S_MAX
    while answer.status == 200 and time.monotonic() < until_s and not (settled and (first or not streamed)):
        after = await link.status()
        settled = _settled(after) > _settled(before)
        first = after["counts"].get("events.first_token", 0) > before["counts"].get("events.first_token", 0)
        await asyncio.sleep(0.1)
    return ProbeSeen(
        status=answer.status,
        body=answer.body[:500].decode(errors="replace"),
        elapsed_ms=elapsed_ms,
        settled=settled,
        first_token=first if streamed else None,
    )


def _settled(status: Mapping[str, Any]) -> int:
    return sum(count for name, count in status["counts"].items() if name.startswith("settled."))


async def _redis(config: Config) -> RedisSeen | Failed:
    if config.sharing is None:
        return Failed("the configuration has no 'sharing' section")
    if extras.missing("redis"):
        return Failed(extras.needed("redis"))
    from redis.exceptions import RedisClusterException, RedisError

    from extproc.state.redis_client import at, connect, place, reason

    url, key = config.sharing.redis, f"{config.sharing.prefix}:doctor"
    whole = client = connect(url)
    try:
        client = await at(whole, key)
        latencies = []
        for _ in range(5):
            began_s = time.monotonic()
            await client.ping()
            latencies.append((time.monotonic() - began_s) * 1000)
        before_ms = time.time() * 1000
        seconds, micros = await client.time()
        middle_ms = (before_ms + time.time() * 1000) / 2
        info = await client.info()
        write_failed = ""
        try:
            await client.set(key, "1", px=1000)
        except RedisError as error:
            write_failed = reason(error)
        return RedisSeen(
            place=place(url),
            version=str(info.get("redis_version", "")),
            latency_ms=min(latencies),
            clock_ahead_ms=round(int(seconds) * 1000 + int(micros) / 1000 - middle_ms),
            memory_max_bytes=info.get("maxmemory"),
            memory_used_bytes=info.get("used_memory"),
            eviction=info.get("maxmemory_policy"),
            write_failed=write_failed,
        )
    except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
        return Failed(f"{place(url)}: {reason(error)}")
    finally:
        await client.aclose()
        if whole is not client:
            await whole.aclose()


def _machine(config: Config) -> MachineSeen:
    files = {each for each in (config.audit.file, config.record.file) if each}
    return MachineSeen(
        files_open_max=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        memory_bytes=_memory(),
        disks={each: _free(Path(each)) for each in sorted(files)},
    )


def _memory() -> int:
    """Bytes that a process here may have: the machine's, or its control group's where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(file).read_text(encoding="ascii")))
    return max(0, min(found))


def _free(file: Path) -> int | Failed:
    folder = file.parent
    if not folder.is_dir():
        return Failed(f"there is no folder {folder}")
    if not os.access(file if file.exists() else folder, os.W_OK):
        return Failed("this user may not write there")
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
