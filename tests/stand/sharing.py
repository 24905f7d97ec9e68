"""Which worker runs which file: whole files, those that wait beside those that work.

pytest-xdist's own orders know nothing of what a test waits for: with all the gateways in one half of a run,
the cores idle there and are fought over in the other. Here every second worker takes the waiting files
first and the others the working ones; whoever has none left of its kind helps with the other. Within a kind
the order is pytest-randomly's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xdist.scheduler.loadfile import LoadFileScheduling

#: Folders whose tests start processes and wait for them.
WAITING = ("tests/e2e/", "tests/attack/", "tests/control/", "tests/state/", "tests/deploy/")

#: Its files share one running demo (a fixture of the session, which is the worker's).
TOGETHER = "tests/e2e/live/"


#: What takes more than ten seconds on a quiet machine, about by length: what is left for the end is short. A
#: file that is not here and should be costs seconds of waiting, no more; a `slow` mark puts it next.
LONG = (
    *(TOGETHER, "tests/e2e/test_doctor.py", "tests/e2e/test_fleet_members.py"),
    *("tests/e2e/test_fleet_health.py", "tests/e2e/test_report.py", "tests/e2e/test_stalls.py"),
    *("tests/e2e/test_up.py", "tests/e2e/test_routing.py", "tests/e2e/test_upstream.py"),
    *("tests/e2e/test_picker.py", "tests/e2e/test_bound.py", "tests/e2e/test_cache_answers.py"),
    *("tests/e2e/test_cache_flight.py", "tests/e2e/test_identity.py", "tests/state/test_quota_redis.py"),
    *("tests/e2e/test_edge.py", "tests/e2e/test_scaling_live.py", "tests/e2e/test_init.py"),
    *("tests/cache/test_store_contract.py", "tests/e2e/test_fleet_control.py", "tests/e2e/test_metering.py"),
    *(
        "tests/e2e/test_routes.py",
        "tests/state/test_quota_redis_faults.py",
        "tests/e2e/test_cache_tenants.py",
    ),
    *("tests/e2e/test_first_token.py", "tests/e2e/test_isolation.py", "tests/e2e/test_quickstart.py"),
    *("tests/e2e/test_upstream_names.py", "tests/e2e/test_quota.py", "tests/e2e/test_reload_live.py"),
    *("tests/e2e/test_tenants_live.py", "tests/e2e/test_survival.py", "tests/e2e/test_spill.py"),
    *(
        "tests/e2e/test_clients.py",
        "tests/e2e/test_documented_requests.py",
        "tests/e2e/test_fleet_sharing.py",
    ),
    *("tests/e2e/test_engine.py", "tests/e2e/test_metrics.py", "tests/control/test_gateway.py"),
    *(
        "tests/attack/test_attacks.py",
        "tests/state/test_quota_contract.py",
        "tests/e2e/test_cache_clients.py",
    ),
    *("tests/control/test_golden.py", "tests/deploy/test_meshes.py", "tests/scaling/test_worker.py"),
    *("tests/core/test_fairness_services.py", "tests/installs/test_extras.py", "tests/lab/test_capacity.py"),
    *("tests/core/test_fairness_run.py", "tests/property/test_strategies.py", "tests/config/test_load.py"),
    *("tests/scaling/test_launcher.py", "tests/lab/test_search.py", "tests/wire/http2/test_frames.py"),
    *("tests/plugins/test_engine_plugin.py", "tests/lab/test_replay_play.py", "tests/lab/test_workload.py"),
    *("tests/core/experiment/test_running.py", "tests/sim/test_world.py", "tests/sim/test_conduct.py"),
    *("tests/core/scaling/test_forecast.py", "tests/test_laws.py", "tests/lab/test_report.py"),
    *("tests/cli/test_init.py", "tests/cli/test_scale.py", "tests/cli/test_simulate.py"),
    *("tests/observe/alerts/test_prometheus.py", "tests/cli/test_completion.py"),
)


class Sharing(LoadFileScheduling):
    """One queue of files, taken from by kind."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        # By number of tests says little of how long a file takes; keep the order of collection.
        config.option.loadscopereorder = False
        self.waits: dict[Any, bool] = {}

    def _split_scope(self, nodeid: str) -> str:
        """The file; or its folder where that shares what is dear to start."""
        return TOGETHER if nodeid.startswith(TOGETHER) else super()._split_scope(nodeid)

    def add_node(self, node: Any) -> None:
        """Every second worker waits; one that replaces a crashed one takes its place."""
        super().add_node(node)
        waiting = sum(self.waits.values())
        self.waits[node] = waiting <= len(self.waits) - waiting

    def remove_node(self, node: Any) -> str | None:
        """What a crashed worker left undone is done by the others, but for the test that it crashed in."""
        self.waits.pop(node, None)
        work = self.assigned_work.pop(node)
        left = {scope: {t: done for t, done in unit.items() if not done} for scope, unit in work.items()}
        left = {scope: unit for scope, unit in left.items() if unit}
        if not left:
            return None
        first = next(iter(left))
        crashed = next(iter(left[first]))
        left[first][crashed] = True
        for scope, unit in left.items():
            if not all(unit.values()):
                self.workqueue[scope] = unit
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _assign_work_unit(self, node: Any) -> None:
        wanted = next((scope for scope in self.workqueue if self.waits[node] == waits(scope)), None)
        if wanted is not None:
            self.workqueue.move_to_end(wanted, last=False)
        super()._assign_work_unit(node)


def waits(scope: str) -> bool:
    """Whether the file waits for processes more than it computes."""
    return scope.startswith(WAITING)


def long_first(items: Sequence[Any]) -> list[Any]:
    """What is LONG, then files with a test marked slow: no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    # Asked once a file, and not for each of thousands of tests in each worker.
    nodeids = {item.path: item.nodeid for item in items}

    def place(nodeid: str, slow: bool) -> int:
        found = (at for at, scope in enumerate(LONG) if nodeid.startswith(scope))
        return next(found, len(LONG) if slow else len(LONG) + 1)

    places = {path: place(nodeid, path in slow) for path, nodeid in nodeids.items()}
    return sorted(items, key=lambda item: places[item.path])
