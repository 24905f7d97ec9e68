"""What is asked of the analytics, and what is answered: typed, so that RPC, HTTP API and CLI agree.

Owns the words and the reading of times. A query comes as plain values, all of which may be text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from extproc.observe.analytics.row import RowKey
from extproc.observe.analytics.spans import DAY, HOUR, MINUTE

#: What figures can be told apart by: of a request, and of time.
WHO = RowKey._fields
WHEN = {"minute": MINUTE, "hour": HOUR, "day": DAY}
#: Lines of one answer; the rest is counted.
LINES_MAX = 20_000

_AGO = re.compile(r"(\d{1,6})\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_TIMES = "write 24h, 7d, 2026-11-26, 2026-11-26T12:00Z, today, yesterday or seconds since 1970"


class Query(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A question, as `steersman report` and GET /api/v1/report put it.

    `by` is names of WHO and WHEN with commas between: what lines are told apart by. `since` and `until` are
    24h (so long ago), a date (UTC) or a time, today, yesterday, now, or seconds since 1970; both are moved
    outwards to whole minutes, or what is still kept. `tenant`, `pool`, `model`, `strategy`, `arm` and
    `place` leave out all others. `chargeback` asks for lines by day, tenant and model, of `day` (a date,
    today or yesterday) or, where that is left out, of the days that `since` and `until` touch. `limit` is
    how many lines, the ones with most requests first (in order of time where `by` names one).
    """

    by: str = "tenant"
    since: str | float = "24h"
    until: str | float = "now"
    tenant: str = ""
    pool: str = ""
    model: str = ""
    strategy: str = ""
    arm: str = ""
    place: str = ""
    chargeback: bool = False
    day: str = ""
    limit: int = LINES_MAX


class Quantiles(msgspec.Struct):
    """How values lie: quantiles within a hundredth (relative) of the value of that rank; None without any."""

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class QueryLine(msgspec.Struct, kw_only=True):
    """Figures of one group.

    `group` has a value for each name of the query's `by`; a time is its span's beginning (UTC). `requests` is
    the sum of `ok`, `refused` (4xx of the engine), `error`, `client_gone`, `expired` (no end was ever heard
    of), `rejected` (by us: `codes`) and `left` (while waiting). A request counts when it ends. Latencies are
    of requests that cost a place on a replica: `ttft_ms` from the request's start, hold included; `total_ms`,
    `tpot_ms` and `answer_tokens` of those that ended well; `held_ms` of all that were placed or waited.
    `served` counts requests by the model that served, `families` by the family that was asked for. Tokens,
    GPU seconds and cost are what was charged; `cached_tokens` is how many of the input tokens the endpoint
    was believed to hold. `attainment` is slo_met / (slo_met + slo_missed), None where nothing was judged.
    Rates are over `seconds`.
    """

    group: dict[str, str]
    seconds: int
    requests: int
    ok: int
    refused: int
    error: int
    client_gone: int
    expired: int
    rejected: int
    left: int
    codes: dict[str, int]
    requests_per_s: float
    output_tokens_per_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    gpu_seconds: float
    cost: float
    slo_met: int
    slo_missed: int
    attainment: float | None
    ttft_ms: Quantiles
    tpot_ms: Quantiles
    total_ms: Quantiles
    held_ms: Quantiles
    prompt_tokens: Quantiles
    answer_tokens: Quantiles
    served: dict[str, int]
    families: dict[str, int]


class Charge(msgspec.Struct, kw_only=True):
    """What one tenant used of one model on one day (UTC): requests that were sent to an endpoint."""

    day: str
    tenant: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    gpu_seconds: float
    cost: float


class QueryResult(msgspec.Struct, kw_only=True):
    """Lines, or with `chargeback` charges, of the time from `since` to `until` (UTC, as it was taken).

    `total` is of everything asked for; `left_out` counts lines above the limit. `store` says where figures
    are kept, `writers` how many services' lives they come from, `notes` what is missing.
    """

    since: str
    until: str
    by: list[str]
    lines: list[QueryLine]
    charges: list[Charge]
    total: QueryLine | None
    left_out: int
    store: str
    writers: int
    notes: list[str]


def query_of(plain: Mapping[str, Any]) -> Query:
    """A query from plain values. Raises ValueError that says what is wrong with which."""
    wrong = [name for name in plain if name not in Query.__struct_fields__]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} is no part of a query; there are {', '.join(Query.__struct_fields__)}"
        )
    try:
        query = msgspec.convert(dict(plain), Query, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    if query.limit < 1:
        raise ValueError("limit: must be 1 or more")
    return query


def dimensions(by: str) -> list[str]:
    """The names of `by`. Raises ValueError for one that is none."""
    names = [name.strip() for name in by.split(",") if name.strip()]
    known = [*WHO, *WHEN]
    for name in names:
        if name not in known:
            raise ValueError(f"by: {name!r} is none of {', '.join(known)}")
    if sum(name in WHEN for name in names) > 1:
        raise ValueError("by: name one of minute, hour, day")
    return list(dict.fromkeys(names))


def time_of(given: str | float, *, now_s: int, name: str) -> int:
    """A point in time in seconds since 1970. Raises ValueError."""
    text = str(given).strip()
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now_s - int(ago[1]) * _SECONDS[ago[2]]
        if text == "now":
            return now_s
        if text in ("today", "yesterday"):
            return now_s - now_s % DAY - (DAY if text == "yesterday" else 0)
        if re.fullmatch(r"\d{9,11}(\.\d*)?", text):
            return int(float(text))
        at = datetime.fromisoformat(text)
        # Days here are UTC's, and so is what names no zone.
        return int(at.replace(tzinfo=at.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: {text[:63]!r} is no time; {_TIMES}") from None


def day_of(given: str, *, now_s: int) -> int:
    """The beginning of a day. Raises ValueError."""
    at_s = time_of(given, now_s=now_s, name="day")
    if at_s % DAY or _AGO.fullmatch(given.strip()):
        raise ValueError(f"day: {given[:63]!r} is no day; write 2026-11-26, today or yesterday")
    return at_s


def shown(at_s: int, length_s: int = MINUTE) -> str:
    """A time as people read it: a day, or to the minute."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at_s)
    return at.strftime("%Y-%m-%d" if length_s == DAY else "%Y-%m-%dT%H:%MZ")
