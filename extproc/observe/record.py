"""The record of decisions: one line a request at its end, and what the fleet was; no text of any prompt.

Owns the format, what a line holds, and when the fleet is told of. `extproc.lab.replay` reads it; the file
itself is spool.py's. A file holds lines of JSON:

    {"steersman_record": 1, "fields": […], …}   the header: begins a file, and what each process writes
    {"fleet": {…}, "at_ms": …}                  replicas, learned timings, classes: at start and at a change
    {"dropped": 3, "at_ms": …}                  lines that did not fit into memory
    ["…", …]                                    a request, in the order of the header's fields

Times of requests are unix milliseconds, reckoned from one reading of the wall clock at the process's start:
gaps are those of the monotonic clock. Of a prompt at most PREFIX_BLOCKS_MAX block hashes are kept
(block_tokens tokens each, about 64), each as 8 hex digits of a keyed BLAKE2b; the key is the process's own
and written nowhere, so that nobody can try guesses of prompts against the file. With 32 bits and a million
different blocks, one of 4,000 new blocks is taken for a known one. With `repeats` a request's
`question` is 16 digits of such a hash of all of it and its tenant, and `unfit` why it would not be cached.

What waits (a quarter of a second) is lost with the process; a line cut off by a kill is the last one, since
each process begins on a line of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from extproc.config.model import Record
from extproc.core.cachekeys.values import CachedAnswer
from extproc.core.decide import RoutingRequest
from extproc.core.endpoint import Endpoint
from extproc.core.events import Observer, Settled
from extproc.core.fleet import Pool
from extproc.core.outcome import End, Outcome, Reject, Reservation, Routed
from extproc.core.scheduler import Scheduler
from extproc.core.slo import ClassSpec
from extproc.observe.questions import QuestionHash
from extproc.observe.spool import Spool

VERSION: Final = 1
#: The key of the header's version, by which a record is known.
MARK: Final = "steersman_record"
FIELDS: Final = (
    *("at_ms", "id", "pool", "model", "tenant", "service_class", "outcome", "code", "status"),
    *("endpoint", "strategy", "arm", "stream", "sequences", "max_new_tokens"),
    *("expected_input_tokens", "expected_output_tokens", "cached_tokens", "expected_ttft_ms"),
    *("held_ms", "ttft_ms", "duration_ms", "input_tokens", "output_tokens", "block_tokens", "prefix"),
    *("question", "unfit", "answer_bytes", "place"),
)
#: Of a replica in a fleet line, and of a timing (milliseconds; predict/timing.py's a, b, c, pa, pb, pc).
MEMBER_FIELDS: Final = (
    *("address", "zone", "max_concurrent", "hardware", "gpus", "kv_tokens", "price_per_hour", "spot"),
    *("ready", "factor"),
)
TIMING_FIELDS: Final = (
    *("hardware", "gpus", "samples", "decode_base_ms", "decode_per_sequence_ms"),
    *("decode_per_context_token_ms", "prefill_base_ms", "prefill_per_token_ms", "prefill_per_square_ms"),
)
#: Of a service class: its name, its times in nanoseconds, and what counts as a long prompt.
CLASS_FIELDS: Final = (
    *("name", "hold_ns", "ttft_ns", "tpot_ns", "long_prompt_tokens", "long_ttft_ns", "long_hold_ns"),
)
#: Block hashes kept of one prompt (about 8,000 tokens); what comes after them counts as never cached.
PREFIX_BLOCKS_MAX: Final = 128
PREFIX_DIGITS: Final = 8
#: Requests that wait for the disk, and requests whose end is awaited; a further one is recorded without its
#: prefix and with a reckoned arrival.
WAITING_MAX, OPEN_MAX = 10_000, 100_000
#: The fleet is told again at most so often when it changes, and when what was learned has moved by so much.
FLEET_NS, LEARNED_NS, LEARNED_MOVED = 5_000_000_000, 60_000_000_000, 0.05
#: Lines encoded in one go: other threads get their turn between.
ENCODED_AT_ONCE, PAUSE_S = 64, 0.001

#: What is kept of a request in flight: when it came, its prefix, tokens a block, its question.
_Open = tuple[int, Sequence[int], float, str]


class Recorder(Observer):
    """One process's way into the record; an `Observer` of the scheduler's. Nothing is kept without a file."""

    def __init__(
        self,
        settings: Record,
        *,
        instance: str,
        clock: Callable[[], int],
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.settings = settings
        self.instance = instance
        self._offset_ns = wall_ns() - clock()
        #: Copied for each block: half the cost of keying anew.
        self._keyed = blake2b(digest_size=PREFIX_DIGITS // 2, key=os.urandom(16))
        #: What shows that requests are equal.
        self.question = QuestionHash()
        self._spool: Spool[Any] = Spool("record", waiting_max=WAITING_MAX)
        self._open: dict[str, _Open] = {}
        self._begun = False
        self._fleet: dict[str, Any] | None = None
        self._fleet_seen: tuple[int, int] = (-1, 0)
        self._fleet_ns = 0

    @property
    def on(self) -> bool:
        """Whether anything is recorded."""
        return self.settings.file is not None

    @property
    def repeats(self) -> bool:
        """Whether requests are to be told apart by their whole bodies."""
        return self.on and self.settings.repeats

    @property
    def waiting(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._spool or self._spool.dropped)

    @property
    def counts(self) -> dict[str, int]:
        """Lines dropped for want of memory, and lost to the disk."""
        return {"dropped": self._spool.dropped_total, "lost": self._spool.lost_total}

    def apply(self, settings: Record) -> None:
        """A new configuration."""
        if settings.file != self.settings.file:
            self._begun = False
            self._open.clear()
        if settings != self.settings:
            self._fleet = None
        self.settings = settings

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request was sent to an endpoint."""
        if len(self._open) < OPEN_MAX:
            work = routing.work
            prefix = work.prefix[:PREFIX_BLOCKS_MAX] if self.settings.prefixes else ()
            self._open[routing.id] = (routing.arrived_ns, prefix, work.block_tokens, routing.question)

    def cached(self, routing: RoutingRequest, answer: CachedAnswer, *, now_ns: int) -> None:  # noqa: ARG002
        """The cache answered a request."""
        self._turned(routing, "cached", "", 200, now_ns)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """A request was turned away."""
        outcome = "shed" if reject.code == "overloaded" else "rejected"
        self._turned(routing, outcome, reject.code, reject.status, now_ns)

    def left(
        self,
        reservation_id: str,
        routing: RoutingRequest | None,
        *,
        gave_up: bool,  # noqa: ARG002
        now_ns: int,
    ) -> None:
        """A client left before its request had an endpoint, or before Envoy heard of it."""
        self._open.pop(reservation_id, None)
        if routing is not None:
            self._turned(routing, "left", "", 0, now_ns)

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """A request has ended."""
        outcome = event.outcome
        self._spool.add((outcome, self._open.pop(outcome.reservation.id, None), now_ns))

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:
        """A request's end never came."""
        self._spool.add((reservation, self._open.pop(reservation.id, None), now_ns))

    def watch(self, scheduler: Scheduler, *, now_ns: int, last: bool = False) -> None:
        """Tell of the fleet when it has changed; called every quarter of a second, and at the `last`."""
        if not self.on:
            return
        seen = (scheduler.fleet.version, id(scheduler.policy))
        since_ns = now_ns - self._fleet_ns
        early = since_ns < FLEET_NS or (seen == self._fleet_seen and since_ns < LEARNED_NS)
        if self._fleet is not None and early and not last:
            return
        fleet = fleet_of(scheduler, self._tenant)
        self._fleet_ns, self._fleet_seen = now_ns, seen
        if self._fleet is None or _differs(self._fleet, fleet):
            self._fleet = fleet
            self._spool.add({"fleet": fleet, "at_ms": self._unix_ms(now_ns)})

    def flush(self, *, last: bool = False) -> None:
        """Write what waits; never raises OSError. May run in a thread."""
        with self._spool.writing(wait=last) as mine:
            if not mine:
                return
            lines, dropped = self._spool.take()
            if self.settings.file is None or not (lines or dropped):
                return
            path = Path(self.settings.file)
            told = any(isinstance(line, dict) and line["fleet"] is self._fleet for line in lines)
            data = bytearray()
            if not self._begun and path.exists():
                # On a line of its own: the one before may have been cut off.
                data += b"\n" + self._head(fleet=not told)
            for number, line in enumerate(lines, start=1):
                data += self._encoded(line) + b"\n"
                if number % ENCODED_AT_ONCE == 0 and not last:
                    time.sleep(PAUSE_S)
            if dropped:
                at_ms = time.time_ns() / 1e6
                data += msgspec.json.encode({"dropped": dropped, "at_ms": round(at_ms, 3)}) + b"\n"
            self._begun = self._spool.write(
                path,
                bytes(data),
                lines=len(lines),
                bytes_max=self.settings.bytes_max,
                head=partial(self._head, fleet=not told),
            )

    def _head(self, *, fleet: bool) -> bytes:
        """What a file, and a process's part of one, begins with; the fleet where no line behind tells it."""
        header = {
            MARK: VERSION,
            "instance": self.instance,
            "fields": FIELDS,
            "prefix_digits": PREFIX_DIGITS,
            "prefix_blocks_max": PREFIX_BLOCKS_MAX if self.settings.prefixes else 0,
            "tenants": self.settings.tenants,
        }
        head = msgspec.json.encode(header) + b"\n"
        if fleet and self._fleet is not None:
            at_ms = self._unix_ms(self._fleet_ns)
            head += msgspec.json.encode({"fleet": self._fleet, "at_ms": at_ms}) + b"\n"
        return head

    def _turned(self, routing: RoutingRequest, outcome: str, code: str, status: int, now_ns: int) -> None:
        work = routing.work
        prefix = work.prefix[:PREFIX_BLOCKS_MAX] if self.settings.prefixes else ()
        # The case itself is not kept: its prompt's hashes may be many.
        self._spool.add(
            (
                *(
                    routing.arrived_ns or now_ns,
                    now_ns,
                    routing.id,
                    routing.pool,
                    routing.model,
                    routing.tenant.name,
                ),
                *(
                    routing.tenant.service_class,
                    outcome,
                    code,
                    status,
                    routing.strategy,
                    routing.arm,
                    routing.stream,
                ),
                *(max(1, routing.permits), work.max_new_tokens, routing.input_tokens, routing.output_tokens),
                *(work.block_tokens, prefix, routing.question, routing.tenant.place),
            )
        )

    def _encoded(self, line: Any) -> bytes:
        if isinstance(line, dict):
            return msgspec.json.encode(line)
        if isinstance(line[0], Outcome):
            return msgspec.json.encode(self._of_outcome(*line))
        if isinstance(line[0], Reservation):
            reservation, opened, now_ns = line
            outcome = Outcome(reservation=reservation, final=True, end=End.ERROR)
            row = self._of_outcome(outcome, opened, now_ns)
            row[FIELDS.index("outcome")] = "expired"
            return msgspec.json.encode(row)
        return msgspec.json.encode(self._of_case(*line))

    def _of_outcome(self, outcome: Outcome, opened: _Open | None, now_ns: int) -> list[Any]:
        r = outcome.reservation
        unknown = (now_ns - outcome.duration_ns, (), 0.0, "")
        arrived_ns, prefix, block_tokens, question = opened or unknown
        return [
            self._unix_ms(arrived_ns),
            *(r.id, r.pool, r.model, self._tenant(r.tenant), r.service_class),
            "refused" if outcome.refused else outcome.end.value,
            "",
            outcome.status,
            outcome.served_by or r.address,
            *(r.strategy, r.arm, r.stream, max(1, r.permits), r.max_new_tokens),
            *(r.input_tokens, r.output_tokens, r.cached_tokens, r.ttft_ms, r.held_ms),
            None if outcome.ttft_ns is None else round(outcome.ttft_ns / 1e6, 3),
            round((outcome.duration_ns or now_ns - arrived_ns) / 1e6, 3),
            *(outcome.prompt_tokens, outcome.output_tokens, round(block_tokens, 2), self._prefix(prefix)),
            *_question(question),
            outcome.response_bytes,
            r.place,
        ]

    def _of_case(
        self,
        arrived_ns: int,
        now_ns: int,
        id: str,  # noqa: A002 (the reservation's own word)
        pool: str,
        model: str,
        tenant: str,
        service_class: str,
        outcome: str,
        code: str,
        status: int,
        strategy: str,
        arm: str,
        stream: bool,
        sequences: int,
        max_new_tokens: int | None,
        expected_input: int,
        expected_output: int,
        block_tokens: float,
        prefix: Sequence[int],
        question: str,
        place: str,
    ) -> list[Any]:
        waited_ms = round((now_ns - arrived_ns) / 1e6, 3)
        return [
            self._unix_ms(arrived_ns),
            *(id, pool, model, self._tenant(tenant), service_class, outcome, code, status),
            *("", strategy, arm, stream, sequences, max_new_tokens, expected_input, expected_output),
            *(0, 0.0, waited_ms, None, waited_ms, None, None, round(block_tokens, 2)),
            self._prefix(prefix),
            *_question(question),
            *(0, place),
        ]

    def _unix_ms(self, now_ns: int) -> float:
        return round((now_ns + self._offset_ns) / 1e6, 3)

    def _tenant(self, name: str) -> str:
        return name if self.settings.tenants == "named" else tenant_hash(name)

    def _prefix(self, blocks: Sequence[int]) -> str:
        copy, digests = self._keyed.copy, []
        for block in blocks:
            hashed = copy()
            hashed.update(block.to_bytes(8, "little"))
            digests.append(hashed.digest())
        return b"".join(digests).hex()


def _question(question: str) -> tuple[str, str]:
    """Its hash, and why it is not cached."""
    digest, _, unfit = question.partition(":")
    return digest, unfit


def tenant_hash(name: str) -> str:
    """How a tenant is called in a record whose tenants are hashed."""
    return sha256(name.encode()).hexdigest()[:12]


def fleet_of(scheduler: Scheduler, tenant: Callable[[str], str] = str) -> dict[str, Any]:
    """What a replay must know: pools, replicas, what was learned of them, classes and weights."""
    return {
        "pools": [_pool(pool) for pool in scheduler.fleet.pools.values()],
        "classes": [_class(each) for each in scheduler.policy.classes],
        "weights": {
            tenant(name): weight for name, weight in scheduler.policy.weights.items() if weight != 1.0
        },
    }


def _class(spec: ClassSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in CLASS_FIELDS}


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "name": pool.name,
        "models": list(pool.models),
        "engine": pool.engine,
        "strategy": pool.strategy,
        "parameters": {name: dict(given) for name, given in pool.parameters.items()},
        "prefill_budget_tokens": pool.prefill_budget_tokens,
        "bytes_per_token": round(pool.calibration.bytes_per_token, 3),
        "output_tokens": round(pool.calibration.output_tokens, 1),
        "members": [_member(endpoint) for endpoint in pool.endpoints],
        "timings": [
            [
                *(hardware, gpus, model.samples),
                *(float(f"{getattr(model.timing, name):.5g}") for name in TIMING_FIELDS[3:]),
            ]
            for (hardware, gpus), model in pool.speeds.items()
        ],
    }


def _member(endpoint: Endpoint) -> list[Any]:
    return [
        *(endpoint.address, endpoint.zone, endpoint.max_concurrent, endpoint.hardware, endpoint.gpus),
        *(endpoint.kv_tokens, endpoint.price_per_hour, endpoint.spot, endpoint.ready),
        round(endpoint.speed.factor, 4),
    ]


def _differs(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a fleet is another one, or what was learned has moved by more than LEARNED_MOVED."""
    fixed_before, learned_before = _parted(before)
    fixed_after, learned_after = _parted(after)
    if fixed_before != fixed_after or len(learned_before) != len(learned_after):
        return True
    return any(
        abs(now - then) > LEARNED_MOVED * max(abs(then), 1e-9)
        for then, now in zip(learned_before, learned_after, strict=True)
    )


def _parted(fleet: Mapping[str, Any]) -> tuple[list[Any], list[float]]:
    """What is configured or seen, and the numbers that were learned."""
    fixed: list[Any] = [fleet["classes"], fleet["weights"]]
    learned: list[float] = []
    for pool in fleet["pools"]:
        fixed += [pool["name"], pool["models"], pool["strategy"], pool["parameters"]]
        fixed += [member[:-1] for member in pool["members"]]
        fixed += [timing[:2] for timing in pool["timings"]]
        learned += [member[-1] for member in pool["members"]]
        learned += [value for timing in pool["timings"] for value in timing[3:]]
    return fixed, learned
