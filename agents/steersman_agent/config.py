"""The shape of `agent.yaml`, and reading it: a checked `AgentConfig`, or every mistake at once.

Owns names, defaults, ranges and the wording of mistakes (`file: path: message`).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from extproc import addresses
from extproc.meant import one_of
from extproc.wording import dotted, wording
from extproc.yamltext import YamlMistakeError, read
from steersman_agent import engines
from steersman_agent.section import AgentSection
from steersman_agent.upstream import ReplicaUpstream

#: A configuration file above this is refused unread.
CONFIG_BYTES_MAX = 1024 * 1024
REPLICAS_MAX, SERVICES_MAX = 64, 16
#: Prompts more often than this are no light load any more.
PROBE_MS_MIN = 500


def _engine(value: str) -> str:
    try:
        engines.adapter(value)
    except KeyError:
        raise ValueError(one_of(value, engines.names())) from None
    return value


def _ip_port(value: str) -> str:
    """Canonical `ip:port`: the service and Envoy know a replica by this very string."""
    try:
        host, port = addresses.split(value)
        if ":" in host and not value.startswith("["):
            raise ValueError("an IPv6 address without brackets: where does its port begin?")
    except ValueError:
        raise ValueError(f"{value!r} is not ip:port; write it such as 10.0.0.5:8080") from None
    try:
        return addresses.spelled(host, port)
    except ValueError:
        raise ValueError(
            f"{host!r} is not an IP address; write the one that Envoy connects to, such as 10.0.0.5:{port}"
        ) from None


def _service(value: str) -> str:
    if value.startswith("unix:"):
        if len(value) == len("unix:"):
            raise ValueError("'unix:' has no path; write unix:/run/steersman/telemetry.sock")
        return value
    try:
        named = bool(addresses.split(value)[0]) and "/" not in value
    except ValueError:
        named = False
    if not named:
        raise ValueError(f"{value!r} is not host:port; write it such as steersman.internal:9003")
    return value


def _url(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"https?://[^\s/?#]+", value.rstrip("/")):
        raise ValueError(f"{value!r} is not a base URL; write it such as http://127.0.0.1:8080")
    return value.rstrip("/") if value is not None else None


def _zmq(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"tcp://[^\s/*]+:[0-9]{1,5}|ipc://\S+", value):
        raise ValueError(f"{value!r} is not where a publisher is; write it such as tcp://127.0.0.1:5557")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", value):
        raise ValueError(f"must be a name of letters, digits, '.', '_', '-' and '/' (it is {value!r})")
    return value


def _nvml(value: str) -> str:
    if value in ("auto", "off") or (value.startswith("fake:") and len(value) > len("fake:")):
        return value
    raise ValueError(f"{value!r} is not one of 'auto', 'off' or 'fake:PATH'")


Name = Annotated[str, Field(min_length=1, max_length=253), AfterValidator(_name)]
Place = Annotated[str, Field(max_length=63)]
IpPort = Annotated[str, AfterValidator(_ip_port)]
EngineName = Annotated[str, AfterValidator(_engine)]


class TlsSettings(AgentSection):
    """Mutual TLS: the service reads the node's name from the certificate's SAN."""

    ca: Path = Field(strict=False)
    cert: Path | None = Field(default=None, strict=False)
    key: Path | None = Field(default=None, strict=False)
    #: The name to expect in the service's certificate, where it is not the address.
    server_name: str | None = None


class KvEventsSettings(AgentSection):
    """Where a vLLM or SGLang publishes its KV events (`--kv-events-config`)."""

    endpoint: Annotated[str, AfterValidator(_zmq)]
    #: Its `replay_endpoint`: what was missed is asked for there.
    replay: Annotated[str | None, AfterValidator(_zmq)] = None
    topic: str = Field(default="", max_length=256)
    #: Data-parallel ranks; each has the port that is by its number higher.
    ranks: int = Field(default=1, ge=1, le=64)

    @staticmethod
    def at(endpoint: str, rank: int) -> str:
        """A rank's own address."""
        host, _, port = endpoint.rpartition(":")
        return f"{host}:{int(port) + rank}" if port.isdigit() else endpoint


class ReplicaSettings(AgentSection):
    """One engine replica on this node."""

    address: IpPort
    #: Where the agent reaches it; http://ADDRESS when left out.
    url: Annotated[str | None, AfterValidator(_url)] = None
    pool: Name
    engine: EngineName
    #: TLS, a path before its own, headers, the engine's own key: as the pool's `upstream`.
    upstream: ReplicaUpstream = ReplicaUpstream()
    #: The ids that the engine must answer for, as the engine names them; empty: any.
    models: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(), max_length=64, strict=False
    )
    #: Where given, they go before what the engine says.
    kv_capacity_tokens: int | None = Field(default=None, ge=1)
    max_concurrent: int | None = Field(default=None, ge=1, le=2**32 - 1)
    #: GPU indices or UUIDs; empty: found by the process that listens on the port.
    gpus: tuple[int | str, ...] = Field(default=(), max_length=64, strict=False)
    zone: Place | None = None
    #: Its KV events; not heard when left out.
    kv_events: KvEventsSettings | None = None
    #: Silence that counts as one timeout (two make it hung); the engine's own default when left out.
    timeout_ms: int | None = Field(default=None, ge=50, le=60_000)

    @property
    def base_url(self) -> str:
        """Where the agent reaches it."""
        scheme = "http" if self.upstream.tls is None else "https"
        return (self.url or f"{scheme}://{self.address}") + self.upstream.path_prefix

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return addresses.port_of(self.address)


class AgentConfig(AgentSection):
    """All of agent.yaml; durations in milliseconds."""

    node: Name = Field(default_factory=socket.gethostname)
    zone: Place = ""
    region: Place = ""
    services: tuple[Annotated[str, AfterValidator(_service)], ...] = Field(
        default=(), max_length=SERVICES_MAX, strict=False
    )
    #: `each`: a stream to every service; `any`: to one at a time, the next when it fails.
    mode: Literal["each", "any"] = "each"
    token_file: Path | None = Field(default=None, strict=False)
    token_env: str | None = Field(default=None, min_length=1)
    tls: TlsSettings | None = None
    nvml: Annotated[str, AfterValidator(_nvml)] = "auto"
    #: Metrics while there is work, and while there is none; health; GPUs.
    poll_ms: int = Field(default=100, ge=20, le=60_000)
    poll_idle_ms: int = Field(default=1000, ge=20, le=60_000)
    health_ms: int = Field(default=1000, ge=50, le=60_000)
    nvml_ms: int = Field(default=1000, ge=50, le=60_000)
    #: A one-token prompt after so long without traffic; 0 sends none.
    probe_ms: int = Field(default=10_000, ge=0, le=3_600_000)
    #: The least time between two reports, and the most.
    spacing_ms: int = Field(default=50, ge=10, le=10_000)
    heartbeat_ms: int = Field(default=1000, ge=100, le=60_000)
    replicas: tuple[ReplicaSettings, ...] = Field(default=(), max_length=REPLICAS_MAX, strict=False)
    #: Addresses of replicas to report as draining; re-read while running, like `replicas`.
    drain: tuple[IpPort, ...] = Field(default=(), max_length=REPLICAS_MAX, strict=False)


class AgentConfigError(Exception):
    """The configuration cannot be used; `problems` are lines ready to print."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path, *, needs_services: bool = True) -> AgentConfig:
    """Read and check a file; `AgentConfigError` with every mistake."""
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise AgentConfigError(
                [f"{path}: is larger than {CONFIG_BYTES_MAX} bytes; is it the right file?"]
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AgentConfigError(
            [f"{path}: cannot be read: {error.strerror}; give the configuration with -f FILE"]
        ) from error
    except UnicodeDecodeError as error:
        raise AgentConfigError([f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8"]) from error
    return loads(text, name=str(path), needs_services=needs_services)


def loads(text: str, *, name: str = "<string>", needs_services: bool = True) -> AgentConfig:
    """Check a configuration given as text; `AgentConfigError` with every mistake."""
    try:
        document = read(text)
    except YamlMistakeError as error:
        line = f" (line {error.line})" if error.line is not None else ""
        raise AgentConfigError([f"{name}: {error}{line}"]) from None
    data = document.data
    if not isinstance(data, dict):
        raise AgentConfigError([f"{name}: holds no mapping; begin with 'services:' and 'replicas:'"])
    if document.repeated:
        raise AgentConfigError([f"{name}: {dotted(where)}: {what}" for where, what in document.repeated])
    try:
        config = AgentConfig.model_validate(data)
    except ValidationError as error:
        lines = [(dotted(_place(entry["loc"])), wording(entry, AgentConfig)) for entry in error.errors()]
    else:
        lines = list(_cross_checks(config, needs_services=needs_services))
    if lines:
        raise AgentConfigError([f"{name}: {path}: {message}" for path, message in lines])
    return config


def _place(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Without a union's branches, which are pydantic's business."""
    return tuple(part for part in location if part not in ("int", "str"))


def _cross_checks(config: AgentConfig, *, needs_services: bool) -> Iterator[tuple[str, str]]:
    """What a single value cannot tell."""
    if needs_services and not config.services:
        yield "services", "is empty; list at least one address to report to, such as 10.0.0.2:9003"
    for place, name in enumerate(config.services):
        if name in config.services[:place]:
            yield f"services[{place}]", f"{name} stands here a second time; keep one of them"
    if config.poll_idle_ms < config.poll_ms:
        yield "poll_idle_ms", f"is below poll_ms ({config.poll_ms}); write at least as much"
    if config.heartbeat_ms < config.spacing_ms:
        yield "heartbeat_ms", f"is below spacing_ms ({config.spacing_ms}); write at least as much"
    if 0 < config.probe_ms < PROBE_MS_MIN:
        yield "probe_ms", f"would keep the engines busy; write {PROBE_MS_MIN} or more, or 0 for no prompts"
    if config.token_file is not None and config.token_env is not None:
        yield "token_env", "goes with no token_file; keep one of them"
    if config.token_file is not None and not config.token_file.is_file():
        yield "token_file", f"{config.token_file} is no file; put the token there"
    if config.token_env is not None and not os.environ.get(config.token_env):
        yield "token_env", f"the environment has no {config.token_env}; set it to the token"
    yield from _tls_checks(config.tls)
    seen: dict[str, int] = {}
    for place, replica in enumerate(config.replicas):
        first = seen.setdefault(replica.address, place)
        if first != place:
            yield (
                f"replicas[{place}].address",
                f"{replica.address} is replicas[{first}] already; give each replica its own",
            )
        for setting, message in replica.upstream.mistakes():
            yield f"replicas[{place}].upstream.{setting}", message
        if replica.url is not None and replica.url.startswith("http://") and replica.upstream.tls is not None:
            yield (
                f"replicas[{place}].url",
                "is in the clear, beside upstream.tls; write https://, or leave tls out",
            )
        for at, gpu in enumerate(replica.gpus):
            if (isinstance(gpu, int) and gpu < 0) or gpu == "":
                yield f"replicas[{place}].gpus[{at}]", f"{gpu!r} is no GPU; write its index or its UUID"
    for place, address in enumerate(config.drain):
        if address not in seen:
            yield f"drain[{place}]", f"{address} is none of the replicas; write a replica's address"


def _tls_checks(tls: TlsSettings | None) -> Iterator[tuple[str, str]]:
    if tls is None:
        return
    if (tls.cert is None) != (tls.key is None):
        yield f"tls.{'key' if tls.key is None else 'cert'}", "is missing; cert and key go together"
    for name in ("ca", "cert", "key"):
        file = getattr(tls, name)
        if file is not None and not file.is_file():
            yield f"tls.{name}", f"{file} is no file; write the path of a PEM file"
