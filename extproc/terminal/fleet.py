"""The fleet as `steersman fleet` shows it: endpoints with their health and load, why, and their GPUs.

Owns columns, wording and colour. What nobody says is a dash, never a nought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from extproc.core.cached import GUESSED
from extproc.core.faults import THROTTLES
from extproc.terminal.tables import (
    ACCENT,
    BAD,
    ODD,
    QUIET,
    WIDE,
    WIDEST,
    Figures,
    bar,
    count,
    health,
    more,
    plain_table,
)

#: Rows of each table where the height does not say less.
ROWS_MAX: Final = 200
#: Lines that are no rows: the head, the tables' own, blanks, what happened.
FRAME_LINES: Final = 12
HEALTH_CELLS: Final = 5
#: The longest IPv4 address with its port.
ADDRESS_CELLS: Final = 21
#: The newest XIDs of a card that are shown.
XIDS_SHOWN: Final = 3
UNKNOWN: Final = "–"
_VENDOR: Final = "NVIDIA "


def fleet_view(status: Figures, *, width: int, height: int) -> RenderableType:
    """Endpoints, what is wrong and the GPUs; `height` bounds the rows of each."""
    endpoints: Sequence[Figures] = status["endpoints"]
    causes = [(each, name, cause) for each in endpoints for name, cause in each["causes"].items()]
    rows = max(3, min(ROWS_MAX, (height - FRAME_LINES - min(len(causes), height // 4)) // 2))
    parts: list[RenderableType] = [endpoints_table(endpoints, width=width, rows=rows)]
    if causes:
        parts += ["", causes_table(causes, width=width, rows=max(2, height // 4))]
    caches = [each for each in endpoints if _tells_cache(each)]
    if caches:
        parts += ["", caches_table(caches, width=width, rows=rows)]
    adapted = [each for each in endpoints if each.get("adapters") is not None]
    if adapted:
        parts += ["", adapters_table(adapted, width=width, rows=rows)]
    if any(endpoint["gpus"] for endpoint in endpoints):
        parts += ["", gpus_table(endpoints, width=width, rows=rows)]
    return Group(*parts)


def endpoints_table(endpoints: Sequence[Figures], *, width: int, rows: int) -> Table:
    """One line an endpoint."""
    wide, widest = width >= WIDE, width >= WIDEST
    columns = [("", "name"), ("pool", "text gives"), ("zone", "text gives")]
    columns += [("node", "text"), ("engine", "text")] if widest else []
    columns += [("health", "text" if wide else "number"), ("state", "text"), ("age", "number")]
    columns += [("wait", "number"), ("run", "number")]
    columns += (
        [("ours", "number"), ("peers", "number"), ("foreign", "number")] if wide else [("load", "number")]
    )
    columns += [("KV tokens", "number")] if wide else []
    columns += [("", "text")] if widest else []
    columns += [("KV", "number")]
    table = plain_table("Fleet", columns)
    for endpoint in endpoints[:rows]:
        cells: list[RenderableType] = [_address(endpoint, wide=widest), _text(endpoint["pool"])]
        cells += [_text(endpoint["zone"])]
        cells += [_text(endpoint["node"]), _text(endpoint["engine"])] if widest else []
        cells += [_health(endpoint) if wide else health(endpoint), _state(endpoint), _age(endpoint)]
        cells += [_number(endpoint["waiting"]), _number(endpoint["running"])]
        cells += _in_flight(endpoint, wide=wide)
        used, capacity = endpoint["kv_used_tokens"], endpoint["kv_capacity_tokens"]
        cells += [_of(used, capacity)] if wide else []
        cells += [Text(bar(used or 0, capacity or 0), style=ACCENT)] if widest else []
        cells += [_share(used, capacity)]
        table.add_row(*cells)
    more(table, len(endpoints) - rows)
    return table


def causes_table(causes: Sequence[tuple[Figures, str, Figures]], *, width: int, rows: int) -> Table:
    """Why health is not whole, a line a cause."""
    table = plain_table(
        "Causes",
        [("", "name"), ("cause", "text"), ("kind", "text"), ("leaves", "number"), ("", "text gives")],
    )
    for endpoint, name, cause in causes[:rows]:
        style = BAD if cause["kind"] == "hard" else ODD
        table.add_row(
            _address(endpoint, wide=width >= WIDEST),
            Text(name, style=style),
            cause["kind"],
            f"{cause['factor']:.2f}",
            Text(cause["detail"], style=QUIET, no_wrap=True, overflow="ellipsis"),
        )
    more(table, len(causes) - rows)
    return table


def _tells_cache(endpoint: Figures) -> bool:
    """Whether anybody says anything of its prefix cache."""
    told = endpoint["kv_events"] is not None or endpoint["prefix_hit_ratio"] is not None
    return told or endpoint["cache_source"] != GUESSED


def caches_table(endpoints: Sequence[Figures], *, width: int, rows: int) -> Table:
    """Prefix caches of which something is told, a line each; `lost`: how often events were lost for good."""
    columns = [("", "name"), ("known by", "text"), ("holds", "number"), ("hit", "number")]
    columns += [(what, "number") for what in ("events", "unreadable", "lost", "replays")]
    table = plain_table("Prefix caches", [*columns, ("", "text gives")])
    for endpoint in endpoints[:rows]:
        kv: Figures = endpoint["kv_events"] or {}
        cells: list[RenderableType] = [_address(endpoint, wide=width >= WIDEST)]
        cells += [Text(endpoint["cache_source"])]
        cells += [_number(endpoint["cache_tokens"]), _share(endpoint["prefix_hit_ratio"], 1.0)]
        cells += [_number(kv.get(what)) for what in ("events", "unreadable", "gaps", "replays")]
        incomplete = bool(kv) and not kv["complete"]
        table.add_row(*cells, Text("incomplete" if incomplete else "", style=ODD))
    more(table, len(endpoints) - rows)
    return table


def adapters_table(endpoints: Sequence[Figures], *, width: int, rows: int) -> Table:
    """LoRA adapters that replicas have loaded, the one used last first, and how often one was loaded."""
    columns = [("", "name"), ("loads", "number"), ("has", "number"), ("", "text gives")]
    table = plain_table("LoRA adapters", columns)
    for endpoint in endpoints[:rows]:
        names = [str(name) for name in reversed(endpoint["adapters"])]
        table.add_row(
            _address(endpoint, wide=width >= WIDEST),
            _number(endpoint["adapter_loads"]),
            _number(len(names)),
            _text(", ".join(names)),
        )
    more(table, len(endpoints) - rows)
    return table


def gpus_table(endpoints: Sequence[Figures], *, width: int, rows: int) -> Table:
    """One line a card; a card that several endpoints share stands by each."""
    wide, widest = width >= WIDE, width >= WIDEST
    columns = [("", "name")]
    columns += [("node", "text")] if widest else []
    columns += [("card", "text"), ("use %", "number"), ("memory GB", "number"), ("°C", "number")]
    columns += [("W", "number")] if wide else []
    columns += [("clock MHz" if wide else "clock", "number"), ("", "text gives")]
    table = plain_table("GPUs", columns)
    cards = [(endpoint, gpu) for endpoint in endpoints for gpu in endpoint["gpus"]]
    for endpoint, gpu in cards[:rows]:
        cells: list[RenderableType] = [_address(endpoint, wide=widest)]
        cells += [_text(endpoint["node"])] if widest else []
        cells += [_text(_name(gpu, width=width)), _number(gpu["utilization_percent"])]
        cells += [_of(gpu["memory_used_bytes"], gpu["memory_total_bytes"], unit=1e9)]
        cells += [_number(gpu["temperature_c"])]
        cells += [_number(gpu["power_w"])] if wide else []
        clock, clock_max = gpu["sm_clock_mhz"], gpu["sm_clock_max_mhz"]
        cells += [_of(clock, clock_max) if wide else _share(clock, clock_max)]
        table.add_row(*cells, _trouble(gpu))
    more(table, len(cards) - rows)
    return table


def _address(endpoint: Figures, *, wide: bool) -> str:
    """An address; on a narrow terminal a long one loses its middle, since its ends tell it apart."""
    address = str(endpoint["address"])
    if wide or len(address) <= ADDRESS_CELLS:
        return address
    half = ADDRESS_CELLS // 2
    return f"{address[:half]}…{address[-half:]}"


def _health(endpoint: Figures) -> Text:
    text = health(endpoint)
    return Text(bar(endpoint["health"], 1.0, cells=HEALTH_CELLS) + " ", style=text.style).append(text)


def _state(endpoint: Figures) -> Text:
    """The agent's word, and what we know beyond it."""
    words = ["draining"] if endpoint["draining"] else [endpoint["state"] or UNKNOWN]
    words += ["suspect"] if endpoint["suspect"] else []
    words += [] if endpoint["announced"] else ["not yet Envoy's"]
    style = ODD if endpoint["draining"] or endpoint["suspect"] else "" if endpoint["ready"] else BAD
    return Text(
        ", ".join(words),
        style=style if endpoint["state"] else style or QUIET,
        no_wrap=True,
        overflow="ellipsis",
    )


def _age(endpoint: Figures) -> Text:
    age_ms = endpoint["age_ms"]
    if age_ms is None:
        return Text(UNKNOWN, style=QUIET)
    shown = f"{age_ms / 1000:.1f} s" if age_ms < 100_000 else f"{age_ms // 60_000} min"
    return Text(shown, style=BAD if endpoint["stale"] else "")


def _in_flight(endpoint: Figures, *, wide: bool) -> list[RenderableType]:
    """Ours, peers' and foreign: three columns, or one sum to read."""
    figures = [endpoint["in_flight"], endpoint["peers_in_flight"], endpoint["foreign"]]
    if wide:
        return [_number(figure) for figure in figures]
    return ["+".join(str(figure) for figure in figures)]


def _trouble(gpu: Figures) -> Text:
    """What a card reports beyond its figures."""
    words = ["lost"] if gpu["lost"] else []
    words += [f"XID {code}" for code, _ in gpu["xids"][-XIDS_SHOWN:]]
    words += [name for bit, name in THROTTLES.items() if (gpu["throttle_reasons"] or 0) & bit]
    words += [f"{gpu['ecc_uncorrected']} ECC"] if gpu["ecc_uncorrected"] else []
    return Text(", ".join(words), style=BAD if gpu["lost"] else ODD, no_wrap=True, overflow="ellipsis")


def _name(gpu: Figures, *, width: int) -> str:
    name = str(gpu["name"]).removeprefix(_VENDOR)
    room = max(14, width // 6)
    return name if len(name) <= room else name[: room - 1] + "…"


def _text(value: str | None) -> Text:
    """A name; a dash where there is none."""
    return Text(value or UNKNOWN, style="" if value else QUIET, no_wrap=True, overflow="ellipsis")


def _number(value: float | None) -> Text:
    """A figure; quiet where there is nothing to see."""
    return Text(count(value), style="" if value else QUIET)


def _of(used: float | None, total: float | None, *, unit: float = 1.0) -> Text:
    """`77/86`, either side a dash where it is unknown."""
    sides = [count(None if side is None else side / unit) for side in (used, total)]
    known = used is not None or total is not None
    return Text("/".join(sides) if known else UNKNOWN, style="" if used else QUIET)


def _share(used: float | None, total: float | None) -> Text:
    """`77%`; a little is not nothing."""
    if used is None or not total:
        return Text(UNKNOWN, style=QUIET)
    share = used / total
    return Text("<1%" if 0.0 < share < 0.005 else f"{share:.0%}", style="" if used else QUIET)


def summary(status: Mapping[str, Any]) -> str:
    """How many there are and how many are whole, in a line."""
    endpoints = status["endpoints"]
    ready = sum(endpoint["ready"] for endpoint in endpoints)
    streams = status["telemetry"]["streams"]
    parts = [
        f"{ready} of {len(endpoints)} endpoints ready",
        f"{streams} agent{'s' * (streams != 1)} connected",
    ]
    if status["sharing"]["connected"]:
        parts.append(f"{status['sharing']['deciders']} services share")
    return "[dim]" + " · ".join(parts) + "[/]"
