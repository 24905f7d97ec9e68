"""What `steersman scale` prints: plans, their history and terms, and advice, as lines.

Owns the words. Takes plain values as the service and `lab.capacity` give them; asks nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

#: Sets a table: rows of cells to lines.
Setter = Callable[[list[list[str]]], list[str]]

#: What is counted of a pool's replicas and requests.
COUNTED: Final = ("wanted", "ready", "loading", "draining", "held")
#: What kept a number from being another, for people.
BOUNDS: Final = {
    "": "",
    "min": "min_replicas",
    "max": "max_replicas",
    "budget": "budget_per_hour",
    "step": "one step at a time",
    "hold": "held: fewer must have been enough for longer",
    "schedule": "the schedule",
}


def status_lines(found: Mapping[str, Any], setter: Setter) -> list[str]:
    """A line for each pool, and below why."""
    heads = ["pool", "now/s", "forecast/s", "in", *COUNTED, "cost/h"]
    rows = [
        [
            each["pool"],
            f"{each['now']['requests_per_s']:.2f}",
            _band(each["forecast"]),
            _s(each["forecast"]["ahead_s"]),
            *(str(each[name]) for name in COUNTED),
            _cost(each["cost_per_hour"]),
        ]
        for each in found["pools"]
    ]
    lines = setter([heads, *rows]) if found["pools"] else []
    for each in found["pools"]:
        bound = f"  [{BOUNDS.get(each['bound'], each['bound'])}]" if each["bound"] else ""
        lines.append(f"  {each['pool']}: {each['why']}{bound}")
        if each["leaving"]:
            lines.append(f"    to leave first: {', '.join(each['leaving'][:10])}")
    return [*lines, *_waiting(found)]


def history_lines(found: Mapping[str, Any], setter: Setter) -> list[str]:
    """A table for each pool, the oldest first."""
    heads = ["at", "now/s", "forecast/s", *COUNTED, "cost/h", "bound"]
    lines: list[str] = []
    for pool in found["pools"]:
        rows = [
            [
                _clock(point["at"]),
                f"{point['requests_per_s']:.2f}",
                _band(point),
                *(str(point[name]) for name in COUNTED),
                _cost(point["cost_per_hour"]),
                point["bound"] or "-",
            ]
            for point in pool["points"]
        ]
        lines += [f"{pool['pool']}:", *setter([heads, *rows])]
    return [*lines, *_waiting(found)]


def explain_lines(found: Mapping[str, Any], setter: Setter) -> list[str]:
    """Each pool's number, term by term."""
    lines: list[str] = []
    for each in found["pools"]:
        lines += _explained(each)
        if each["terms"]:
            table = [["replicas", "attain", "used", "binds"]]
            table += [
                [
                    f"{term['replicas']}" + " (wanted)" * (term["replicas"] == each["wanted"]),
                    f"{term['attainment']:.2%}",
                    f"{term['utilization']:.0%}",
                    term["binding"],
                ]
                for term in each["terms"]
            ]
            lines += ["  at the upper bound:", *setter(table)]
    return [*lines, *_waiting(found)]


def _explained(each: Mapping[str, Any]) -> list[str]:
    loads, forecast, bounds = each["load_time"], each["forecast"], each["bounds"]
    measured = f"of {loads['measured']} loads" if loads["measured"] else "as configured"
    changed = ""
    if each["before"] is not None and each["since"] is not None:
        changed = f" (before {_clock(each['since'])}: {each['before']})"
    counts = f"{each['ready']} ready, {each['loading']} loading, {each['draining']} draining"
    horizon = f"load time p90 {_s(loads['p90_s'])} ({measured}), reaction {_s(bounds['reaction_s'])}"
    ahead = f"in {_s(forecast['ahead_s'])}, by {forecast['method']}"
    down = f"-{bounds['step_down_max']}" if bounds["step_down_max"] else "a quarter fewer"
    most = f"+{bounds['step_up_max']} and {down}, down after {_s(bounds['down_after_s'])}"
    budget = f"{bounds['budget_per_hour']:g} an hour" if bounds["budget_per_hour"] else "none"
    return [
        f"{each['pool']}: {each['wanted']} wanted{changed}, {counts}",
        f"  {each['why']}",
        f"  now        {each['now']['requests_per_s']:.2f} requests/s, {each['held']} held",
        f"  forecast   {_band(forecast)} requests/s {ahead}",
        f"  horizon    {_s(each['horizon_s'])}: {horizon}, and until the next plan",
        f"  need       {_need(each['need'])} for the median",
        f"             {_need(each['need_high'])} for the upper bound",
        f"  target     {bounds['target_attainment']:.2%} within targets",
        f"  margin     {each['margin']:.1%} of what a replica was seen to bear is left free, for that",
        f"  bounds     {bounds['min_replicas']} to {bounds['max_replicas']} replicas, steps of {most}",
        f"  budget     {budget}",
        *_switch(each.get("switch")),
        f"  schedule   at least {each['floor']}" if each["floor"] else "  schedule   asks for nothing",
        f"  kept by    {BOUNDS.get(each['bound'], each['bound']) or 'nothing'}",
        f"  cost       {_cost(each['cost_per_hour'])} an hour",
    ]


def _switch(switch: Mapping[str, Any] | None) -> list[str]:
    """Which replica of another pool should change models for this one."""
    if switch is None:
        return []
    took = f"{_s(switch['switch']['p50_s'])} (of {switch['switch']['measured']}), a new one "
    what = f"  switch     {switch['address']} on {switch['node']}, which {switch['pool']} gives up: "
    full = f"; {switch['passed_over']} others have too little free memory" if switch["passed_over"] else ""
    return [f"{what}{took}{_s(switch['load_p50_s'])}{full}"]


def bound_lines(found: Mapping[str, Any], setter: Setter) -> list[str]:
    """What binds each pool, by what its replicas used of late."""
    if not found["pools"]:
        return ["no replica was looked at yet"]
    table = [["pool", "bound by", "for", "KV p99", "permits p99", "busy", "waiting inside"]]
    for each in found["pools"]:
        use = each["use"]
        table.append(
            [
                each["pool"],
                each["bound"],
                "-" if each["since_s"] is None else _s(each["since_s"]),
                *(_share(use[name]) for name in ("kv_p99", "permits_p99", "busy", "waiting")),
            ]
        )
    why = [
        f"  {each['pool']}: {line}"
        for each in found["pools"]
        for line in (each["why"], *each.get("notes", ()))
    ]
    return [*setter(table), *why, "What a change would do: steersman scale advice --record FILE (simulated)"]


def advice_lines(found: Mapping[str, Any], setter: Setter) -> list[str]:
    """Simulated advice: what binds, each change, and the best."""
    use, best = found["use"], found["best"]
    attained = f"{found['attainment']:.2%} within targets, " if found["attainment"] is not None else ""
    lines = [
        f"pool {found['pool']}: {found['diagnosis']['bound']} (simulated)",
        *(f"  {note}" for note in found["notes"]),
        f"  {found['diagnosis']['why']}",
        f"  as it is: {attained}KV p99 {_share(use['kv_p99'])}, cost {_cost(found['cost_per_hour'])}/h",
        "",
    ]
    if found["gains"]:
        table = [["change", "attained", "gain", "TTFT p99 ms", "TPOT p50 ms", "cost/h"]]
        table += [_gain(each) for each in found["gains"]]
        lines += [*setter(table), ""]
    if best is None:
        return [*lines, "No change is surely better: keep what you have."]
    return [*lines, f"Best: {best['change']['name']}. {best['change']['how']}", "Nothing was applied."]


def _gain(each: Mapping[str, Any]) -> list[str]:
    gain = f"{100 * each['gain']:+.2f}"
    if each["low"] is not None:
        gain += f" [{100 * each['low']:+.2f}, {100 * each['high']:+.2f}]"
    return [
        each["change"]["name"],
        f"{each['attainment']:.2%}",
        gain,
        *("-" if each[name] is None else f"{each[name]:,.0f}" for name in ("ttft_p99_ms", "tpot_p50_ms")),
        _cost(each["cost_per_hour"]),
    ]


def _waiting(found: Mapping[str, Any]) -> list[str]:
    waiting: Sequence[str] = found["waiting"]
    return [f"  no plan yet: {', '.join(waiting)}"] if waiting else []


def _band(band: Mapping[str, Any]) -> str:
    return f"{band['median']:.2f} [{band['low']:.2f}, {band['high']:.2f}]"


def _need(need: Mapping[str, Any]) -> str:
    binds = f", one fewer fails by {need['binding']}" if need["binding"] != "none" else ""
    simulated = ", checked by a simulation" if need["simulated"] else ""
    return f"{need['replicas']} replicas ({need['attainment']:.2%} attain{binds}{simulated})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _s(value: float) -> str:
    return f"{value / 3600:.1f} h" if value >= 7_200 else f"{value:.0f} s"


def _cost(value: float | None) -> str:
    return f"{value:,.2f}" if value else "-"


def _clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))
