"""Scaling in the file: how many replicas a pool may have, what is forecast, and who is told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from extproc.config.section import RELOADABLE, Section
from extproc.config.types import IpPort, Name

#: How the load ahead is forecast; `auto` takes whichever was best on the pool's own past.
ForecastName = Literal["auto", "last", "seasonal", "ets"]


class LauncherConfig(Section):
    """Replicas as local processes, started and stopped by the service."""

    command: list[Annotated[str, Field(min_length=1, max_length=4_096)]] = Field(min_length=1, max_length=256)
    """The command and its arguments. {port}, {address} (127.0.0.1 and the port), {gpu} (its card's index,
    or several with commas) and {pool} are filled in; no shell reads it."""
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default={}, max_length=256
    )
    """Environment variables beside the service's own, filled in likewise
    (CUDA_VISIBLE_DEVICES: "{gpu}")."""
    ports: tuple[int, int] = (0, 0)
    """The first and the last port that replicas listen on; any free port when left out."""
    gpus: list[Annotated[int, Field(ge=0, le=63)]] = Field(default=[], max_length=64)
    """Indexes of the cards that replicas are put on, `pools[].gpus` a replica, each once; not said to them
    when left out."""
    max_concurrent: int = Field(default=128, ge=1, le=65_536)
    """Requests that each takes at once."""
    ready_timeout_s: float = Field(default=600.0, ge=1.0, le=86_400.0)
    """A process that does not answer its health page for so long is ended, and started again later."""
    stop_timeout_s: float = Field(default=30.0, ge=0.1, le=3_600.0)
    """From SIGTERM until SIGKILL, for the process and its children."""
    backoff_s: float = Field(default=1.0, ge=0.05, le=600.0)
    """How long after a crash it is started again; doubled at each further one."""
    backoff_max_s: float = Field(default=60.0, ge=0.05, le=3_600.0)
    """That wait is no longer than this."""
    drain_timeout_s: float = Field(default=900.0, ge=0.0, le=86_400.0)
    """How long the last requests of a replica that is not wanted any more may take, until SIGTERM."""
    log_dir: str | None = Field(default=None, pattern=r"^/")
    """Where each process's output goes, one file a port, of 16 MB at the most; its last half a megabyte is
    kept in the service's run folder when left out."""

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        first, last = self.ports
        if (first, last) != (0, 0) and not 1024 <= first <= last <= 65_535:
            raise ValueError("ports are two numbers, the first not above the last, within 1024 to 65535")
        if self.backoff_max_s < self.backoff_s:
            raise ValueError("backoff_max_s is below backoff_s")
        return self


class PoolScaling(Section):
    """How many replicas a pool has, and when that changes."""

    min_replicas: int = Field(default=1, ge=0, le=1_000)
    """Never fewer. 0: the last one goes when nobody asked for zero_after_s; requests wait for the next."""
    max_replicas: int = Field(ge=1, le=1_000)
    """Never more."""
    target_attainment: float = Field(default=0.99, ge=0.5, le=0.9999)
    """The share of requests that is to attain its class's targets."""
    margin_max: float = Field(default=0.25, ge=0.0, le=0.5)
    """While fewer attain than target_attainment, each replica is asked for less than it was seen to bear:
    learnt, and never by more than this share. 0: never."""
    forecast: ForecastName = "auto"
    """How the load ahead is forecast."""
    load_time_s: float = Field(default=60.0, ge=0.1, le=7_200.0)
    """How long a replica takes until it is ready, before any was measured."""
    reaction_s: float = Field(default=15.0, ge=0.0, le=3_600.0)
    """From what is wanted until a replica begins to start: the orchestrator's own time."""
    step_up_max: int = Field(default=8, ge=1, le=1_000)
    """Replicas more in one step."""
    step_down_max: int = Field(default=0, ge=0, le=1_000)
    """Replicas fewer in one step; 0: a quarter of those that there are, at least one."""
    down_after_s: float = Field(default=300.0, ge=0.0, le=86_400.0)
    """How long fewer must have been enough before one goes; never sooner than a load time."""
    zero_after_s: float = Field(default=900.0, ge=0.0, le=604_800.0)
    """How long nobody must have asked before the last replica goes, where min_replicas is 0."""
    budget_per_hour: float = Field(default=0.0, ge=0.0, le=1e6)
    """What the pool may cost an hour, by its price_per_hour; no bound when 0."""
    launcher: LauncherConfig | None = None
    """Replicas are local processes of this service; somebody else's to start when left out."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is above max_replicas")
        return self


class ScheduledScaling(Section):
    """A known event: a pool has at least so many replicas while it lasts."""

    pool: Name
    """The pool."""
    cron: str = Field(min_length=9, max_length=128)
    """When it begins: minute, hour, day of month, month, day of week, as cron has them."""
    timezone: str = Field(default="UTC", min_length=1, max_length=64)
    """Of which zone (Europe/Berlin)."""
    duration_s: float = Field(ge=60.0, le=604_800.0)
    """How long it lasts. Replicas are started a load time before."""
    replicas: int = Field(ge=0, le=1_000)
    """At least so many; the pool's max_replicas holds."""

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        try:
            CronSim(value, datetime(2026, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise ValueError(
                f"{value!r} is no cron line ({error}); five fields, as in '30 8 * * mon-fri'"
            ) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone that is known here, as Europe/Berlin is") from None
        return value


class ScalerTls(Section):
    """TLS of the external scaler's port."""

    certificate: str = Field(min_length=1)
    """The certificate chain, a PEM file."""
    key: str = Field(min_length=1)
    """Its key, a PEM file."""
    client_ca: str | None = Field(default=None, min_length=1)
    """Who signed the clients' certificates (KEDA's tlsClientCert); anybody may ask when left out."""


class ScalerConfig(Section):
    """KEDA's external scaler, on an address of its own."""

    listen: IpPort = "127.0.0.1:50053"
    """Where KEDA asks (externalscaler.ExternalScaler)."""
    tls: ScalerTls | None = None
    """TLS; in the clear when left out."""
    push_interval_s: float = Field(default=1.0, ge=0.1, le=60.0)
    """How often the pushed streams (StreamIsActive, StreamMetricSpec) look for a change."""


class ScalingWebhook(Section):
    """Somebody who is told of each change of what is wanted, by an HTTP POST of JSON."""

    url: str = Field(pattern=r"^https?://", max_length=2_048)
    """Where it is posted."""
    bearer_file: str | None = Field(default=None, min_length=1)
    """A file with a token for the Authorization header."""
    timeout_s: float = Field(default=5.0, ge=0.1, le=60.0)
    """How long an answer may take; then it is tried again, with what is wanted by then."""


class PodDeletionCost(Section):
    """Kubernetes is told which pods are to go first. Needs the right to list and patch pods."""

    namespace: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)
    """Where the replicas' pods are."""
    selector: str = Field(default="steersman/replica=true", min_length=1, max_length=256)
    """Their labels, as kubectl's -l takes them."""
    account_dir: str = Field(default="/var/run/secrets/kubernetes.io/serviceaccount", pattern=r"^/")
    """The folder of the service account's token and ca.crt."""


class Scaling(Section):
    """How replicas become more and fewer. A pool takes part with its own 'scaling'."""

    interval_s: float = Field(default=5.0, ge=0.5, le=300.0)
    """How often the need is computed anew."""
    bucket_s: float = Field(default=10.0, ge=1.0, le=3_600.0)
    """Arrivals are counted in intervals of this length; forecasts are made from them."""
    history_days: int = Field(default=15, ge=1, le=60)
    """How long the counts are kept: a weekly season needs two weeks."""
    dir: str | None = Field(default=None, pattern=r"^/")
    """The folder of what was learnt (counts, load times), an absolute path; it is learnt anew after a
    restart when left out."""
    simulate: bool = True
    """Whether the need is checked by a short simulation of the scheduler, in a process of its own."""
    external_scaler: ScalerConfig | None = None
    """KEDA asks here; no such port when left out."""
    webhook: ScalingWebhook | None = None
    """Who is told; nobody when left out."""
    pod_deletion_cost: PodDeletionCost | None = None
    """Pods of replicas that are to leave are marked so that Kubernetes ends those; none when left out."""
    schedule: Annotated[list[ScheduledScaling], RELOADABLE] = Field(default=[], max_length=256)
    """Known events."""
