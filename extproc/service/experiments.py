"""Experiments of a running service: as the file has them, looked after, told about, and written down.

Owns the clock's part. An experiment lives in the configuration, so that it survives a reload and a restart,
its start and stop are versions in the history, and every service that reads the file runs the same. What the
guardrail stops is written there as well (in a thread, a version like any other). Where the file cannot be
written the stop holds until this process ends. Results are in memory alone: a
restarted service counts anew, which costs it power and no validity.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from extproc.config.load import ConfigError
from extproc.config.model import Config
from extproc.core.experiment import Arm, Experiment, Experiments, Guardrail, Happened, ShadowSpec
from extproc.history.change import change
from extproc.history.surgery import EditError, Put, edited
from extproc.history.versions import HistoryError
from extproc.observe.audit import AuditLog
from extproc.service.parts import Part

log = logging.getLogger(__name__)

#: Who writes a guardrail's stop, as the history has it.
WHO = "steersman"


class ExperimentsPart(Part):
    """The experiments of one scheduler. `file` is where stops are written; None keeps them in memory."""

    name = "experiments"

    def __init__(
        self,
        config: Config,
        experiments: Experiments,
        audit: AuditLog,
        *,
        counts: Counter[str],
        clock: Callable[[], int],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._experiments, self._audit, self._counts = experiments, audit, counts
        self._clock, self._wall = clock, wall_clock
        self.file: Path | None = None
        #: What has happened and is not yet in the file.
        self._unwritten: list[Happened] = []
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Take a configuration's experiments; those that ask the same as before go on counting."""
        now_ns = self._clock()
        specs = experiments_of(config, now_ns=now_ns, wall_s=self._wall())
        self._experiments.apply(specs, now_ns=now_ns)

    def step(self, *, now_ns: int) -> None:
        """Some time has passed: say what the guardrail has stopped and what has ended."""
        for each in self._experiments.step(now_ns=now_ns):
            what = "arm_stopped" if each.arm else "ended"
            self._counts[f"experiment.{what}"] += 1
            where = f"experiment {each.experiment}" + (f", arm {each.arm}" if each.arm else "")
            log.warning("%s %s: %s", where, "was stopped" if each.arm else "has ended", each.why)
            self._audit.event(
                f"experiment_{what}", experiment=each.experiment, arm=each.arm or None, why=each.why
            )
            if self.file is not None:
                self._unwritten.append(each)

    @property
    def waiting(self) -> bool:
        """Whether `write` has something to do."""
        return bool(self._unwritten)

    def write(self) -> None:
        """Put what has happened into the file, once; never raises. For a thread: it waits for the disk."""
        happened, self._unwritten = self._unwritten, []
        for each in happened:
            rewrite = partial(_with, happened=each)
            try:
                assert self.file is not None
                change(self.file, rewrite, why=_said(each), command="experiment guardrail", who=WHO)
            except (ConfigError, EditError, HistoryError, OSError, ValueError) as error:
                log.warning(
                    "experiment %s: that it was stopped could not be written and holds until this service "
                    "ends: %s",
                    each.experiment,
                    error,
                )

    def status(self) -> list[dict[str, Any]]:
        """All experiments, as `steersman status` tells them."""
        return self._experiments.view(now_ns=self._clock())

    def order(self, body: bytes) -> bytes:
        """`{"name": …}`, all when empty; answers `{"experiments": […]}`. ValueError for an unknown one."""
        name = msgspec.json.decode(body, type=_ExperimentOrder).name
        found = self._experiments.view(name, now_ns=self._clock())
        if name and not found:
            known = [each["name"] for each in self.status()]
            have = f"there are {', '.join(known)}" if known else "none runs"
            raise ValueError(f"no experiment {name[:63]!r} here; {have}")
        return msgspec.json.encode({"experiments": found, "past": self._experiments.past})


def experiments_of(config: Config, *, now_ns: int = 0, wall_s: float = 0.0) -> list[Experiment]:
    """The configuration's experiments as the core knows them, their times in the clock of `now_ns`."""

    def at_ns(when: datetime | None) -> int | None:
        if when is None:
            return None
        return now_ns + round((when.astimezone(UTC).timestamp() - wall_s) * 1e9)

    return [
        Experiment(
            name=name,
            pools=tuple(each.pools),
            arms=tuple(
                Arm(name=arm, strategy=its.strategy, parameters=dict(its.parameters), share=each.shares[arm])
                for arm, its in each.arms.items()
            ),
            split=each.split,
            alpha=round(1.0 - each.confidence, 9),
            guardrail=Guardrail(worse_by=each.guardrail.worse_by) if each.guardrail is not None else None,
            shadow=ShadowSpec(
                strategy=each.shadow.strategy,
                parameters=dict(each.shadow.parameters),
                share=each.shadow.share,
            )
            if each.shadow is not None
            else None,
            start_ns=at_ns(each.starts),
            end_ns=at_ns(each.ends),
            requests_max=each.requests_max,
            unit_requests=each.unit_requests,
            stopped={arm: its.stopped for arm, its in each.arms.items() if its.stopped},
            ended=each.ended or "",
        )
        for name, each in config.experiments.items()
    ]


def _said(happened: Happened) -> str:
    return ": ".join(part for part in (happened.experiment, happened.arm, happened.why) if part)


def _with(text: str, config: Config, happened: Happened) -> str:
    """The file's text with what has happened; as it was where the experiment is gone, or has it."""
    found = config.experiments.get(happened.experiment)
    if found is None or (happened.arm and happened.arm not in found.arms):
        return text
    if found.arms[happened.arm].stopped if happened.arm else found.ended:
        return text
    where = ("arms", happened.arm, "stopped") if happened.arm else ("ended",)
    return edited(text, [Put(("experiments", happened.experiment, *where), happened.why)])


class _ExperimentOrder(msgspec.Struct):
    name: str = ""
