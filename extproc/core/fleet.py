"""The fleet: pools, the endpoints in them, and how both change while requests run.

Owns membership. An address stands once in the whole fleet: two sets of books on one replica would
promise its permits twice. What leaves stays known until its last request has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from extproc.core import kv_heard
from extproc.core.absence import Absence
from extproc.core.adapters import AdapterCounts, LoadedAdapters
from extproc.core.calibrate import Calibration
from extproc.core.coldstart import ColdStart
from extproc.core.contract import cluster_name
from extproc.core.diagnosis import STALE_NS, Diagnosis, step_pool
from extproc.core.endpoint import Endpoint, Member
from extproc.core.outcome import Outcome
from extproc.core.pool_spec import PoolSpec
from extproc.core.predict.admission import Admission
from extproc.core.predict.lengths import OutputLengths
from extproc.core.predict.prior import prior
from extproc.core.predict.slots import Slots
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.prefix import PrefixIndex
from extproc.core.reach import Look
from extproc.core.reports import ReplicaReport, began_anew
from extproc.core.strategies import Strategy, build
from extproc.engines import traits_of

__all__ = ["Endpoint", "Fleet", "Member", "Pool", "PoolSpec"]

#: Kinds of hardware that a pool tells apart; a further one is taken for the first.
HARDWARE_MAX = 64


class Pool:
    """Endpoints that serve one model, the order they are tried in and what they have taught."""

    __slots__ = (
        "_strategies",
        "adapter_counts",
        "adapters",
        "adapters_by_base",
        "ask_usage",
        "blind",
        "calibration",
        "cold",
        "coming",
        "endpoints",
        "engine",
        "kv_capacity_tokens",
        "lengths",
        "models",
        "name",
        "parameters",
        "prefill_budget_tokens",
        "prefixes",
        "prior",
        "site",
        "speeds",
        "strategy",
        "tenants",
        "turn",
        "zone_penalty_tokens",
    )

    def __init__(self, spec: PoolSpec, endpoints: list[Endpoint], calibration: Calibration) -> None:
        self.name = spec.name
        self.models = spec.models
        self.adapters = spec.adapters
        #: What became of each of them here.
        self.adapter_counts = AdapterCounts()
        self.strategy = spec.strategy
        self.tenants = spec.tenants
        self.engine = spec.engine
        self.adapters_by_base = spec.adapters is not None and traits_of(spec.engine).adapters_by_base
        self.site = spec.site
        self.ask_usage = spec.ask_usage
        self.parameters = spec.parameters
        self.kv_capacity_tokens = spec.kv_capacity_tokens
        self.prefill_budget_tokens = spec.prefill_budget_tokens
        #: What its replicas are believed to hold in their prefix caches.
        self.prefixes = PrefixIndex()
        #: The same, with what runs there and will be cached when it ends.
        self.coming = PrefixIndex()
        #: How long its answers are.
        self.lengths = OutputLengths(float(spec.output_tokens))
        #: How fast its kinds of hardware are.
        self.speeds: dict[tuple[str, int], SpeedModel] = {}
        self._strategies: dict[str, Strategy] = {}
        #: What the calibration began with; a pool configured with another one begins again.
        self.prior = (spec.bytes_per_token, spec.output_tokens)
        self.zone_penalty_tokens = spec.zone_penalty_tokens
        self.endpoints = endpoints
        self.calibration = calibration
        #: How it gets its first replica.
        self.cold = ColdStart(possible=spec.starts, load_ns=spec.load_ns, reaction_ns=spec.reaction_ns)
        #: Its telemetry is stale everywhere it ever was.
        self.blind = False
        #: How far the weighted rotation has come (round_robin).
        self.turn = 0.0

    def learnt(self, before: Pool) -> None:
        """Go on with what a pool of the same name has learnt; strategies keep their state where they stay."""
        self.blind, self.turn = before.blind, before.turn
        self.prefixes, self.coming, self.speeds = before.prefixes, before.coming, before.speeds
        self.cold.learnt(before.cold)
        self.adapter_counts = before.adapter_counts
        if self.prior == before.prior:
            self.lengths = before.lengths
        self._strategies = {
            name: strategy
            for name, strategy in before._strategies.items()
            if self.parameters.get(name) == before.parameters.get(name)
        }

    def forget(self, address: str) -> None:
        """An endpoint left: should it come back, its cache is cold."""
        self.prefixes.forget(address)
        self.coming.forget(address)
        for strategy in self._strategies.values():
            strategy.forget(address)

    def serves(self, tenant: str) -> bool:
        """Whether a tenant's requests may be served here."""
        return self.tenants is None or tenant in self.tenants

    @property
    def ready(self) -> bool:
        """Whether any of its endpoints is."""
        return any(endpoint.ready for endpoint in self.endpoints)

    @property
    def starting(self) -> bool:
        """Whether none is ready, and one can be started: requests may wait for it."""
        return self.cold.possible and not self.ready

    @property
    def plain(self) -> bool:
        """Whether all requests are placed by the pool's own strategy."""
        return len(self._strategies) <= 1

    def strategy_named(self, name: str) -> Strategy:
        """The pool's own instance of a strategy; an arm of an experiment has its own, `strategy#name/arm`."""
        found = self._strategies.get(name)
        if found is None:
            found = build(name.partition("#")[0], self.parameters.get(name, {}))
            self._strategies[name] = found
        return found

    def speed_of(self, hardware: str, gpus: int) -> SpeedModel:
        """What is known of a kind of hardware here; a prior in the beginning."""
        found = self.speeds.get((hardware, gpus))
        if found is None:
            if len(self.speeds) >= HARDWARE_MAX:
                return next(iter(self.speeds.values()))
            found = self.speeds[hardware, gpus] = SpeedModel(prior(hardware, self.models[0], gpus=gpus))
        return found

    def told_as(self, model: str) -> str:
        """A model's name as the engines here read it: an adapter's may have its base's before it."""
        if self.adapters_by_base and self.adapters is not None and model in self.adapters.names:
            return f"{self.models[0]}:{model}"
        return model

    def cluster_for(self, service_class: str) -> str:
        """The upstream cluster in which a service class sees this pool."""
        return cluster_name(self.name, service_class)


class Fleet:
    """All pools, by name and by the models they serve."""

    def __init__(self, specs: Iterable[PoolSpec]) -> None:
        self.pools: dict[str, Pool] = {}
        #: Pools by model, those that are reserved first.
        self._by_model: dict[str, list[Pool]] = {}
        self._by_address: dict[str, Endpoint] = {}
        self._diagnoses: dict[str, Diagnosis] = {}
        #: Endpoints that left while requests were running on them.
        self.leaving: dict[str, Endpoint] = {}
        #: Counts the changes that Envoy must hear of: members, readiness, weights.
        self.version = 0
        #: Times when we did not step it.
        self.absence = Absence()
        self.apply(specs)

    def apply(self, specs: Iterable[PoolSpec]) -> None:
        """Take a new configuration; endpoints and pools that stay keep their books and lessons.

        A pool's `endpoints` are the members it has from now on, whatever other source had added.
        """
        specs = list(specs)
        members = {spec.name: [Member(*each) for each in spec.endpoints] for spec in specs}
        self._check(members)
        pools: dict[str, Pool] = {}
        by_model: dict[str, list[Pool]] = {}
        for spec in specs:
            known = self.pools.get(spec.name)
            calibration = (
                known.calibration
                if known is not None and known.prior == (spec.bytes_per_token, spec.output_tokens)
                else Calibration(bytes_per_token=spec.bytes_per_token, output_tokens=spec.output_tokens)
            )
            pool = Pool(spec, known.endpoints if known is not None else [], calibration)
            if known is not None:
                pool.learnt(known)
            pools[spec.name] = pool
            for model in spec.models:
                by_model.setdefault(model, []).append(pool)
        for serving in by_model.values():
            serving.sort(key=lambda pool: (pool.tenants is None, pool.site != ""))
        self.pools, self._by_model = pools, by_model
        #: Whether some pool's engines read an adapter's name otherwise than clients write it.
        self.adapters_by_base = any(pool.adapters_by_base for pool in pools.values())
        self._settle_members(members)

    def set_members(self, members: Mapping[str, Sequence[Member]]) -> None:
        """Replace the members of the pools named; an address in two pools is an assertion."""
        everyone = {
            name: [endpoint.member for endpoint in pool.endpoints] for name, pool in self.pools.items()
        }
        everyone |= {name: list(each) for name, each in members.items() if name in everyone}
        self._check(everyone)
        self._settle_members(everyone)

    def pool_for(self, model: str, tenant: str) -> Pool | None:
        """The pool in which a tenant's requests for a model are served.

        One that is reserved for it before everybody's, one here before another site's; one that is reserved
        for others never.
        """
        return next((pool for pool in self._by_model.get(model, ()) if pool.serves(tenant)), None)

    def models_for(self, tenant: str) -> list[str]:
        """Every model name that is served to a tenant, sorted."""
        return sorted(model for model in self._by_model if self.pool_for(model, tenant) is not None)

    def endpoint(self, pool: str, address: str) -> Endpoint | None:
        """The endpoint of a pool at an address, one that is leaving included."""
        endpoint = self._by_address.get(address) or self.leaving.get(address)
        return endpoint if endpoint is not None and endpoint.pool == pool else None

    def owner(self, address: str) -> str | None:
        """The pool that an address is in."""
        endpoint = self._by_address.get(address)
        return endpoint.pool if endpoint is not None else None

    @property
    def models(self) -> list[str]:
        """Every model name served, sorted."""
        return sorted(self._by_model)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every endpoint, pool by pool."""
        return [endpoint for pool in self.pools.values() for endpoint in pool.endpoints]

    def heard(self, report: ReplicaReport, *, now_ns: int) -> bool:
        """Take an agent's report of a member; false when its address is no member of its pool."""
        endpoint = self._by_address.get(report.address)
        if endpoint is None or endpoint.pool != report.pool:
            return False
        before, said = (endpoint.draining, endpoint.health.hard), endpoint.report
        self._diagnoses[report.address].heard(report, now_ns=now_ns)
        if said is not None and began_anew(said, report):
            self._emptied(endpoint)
        kv_heard.heard(self.pools[endpoint.pool].prefixes, endpoint, said, report)
        self._recognise(endpoint, report)
        if (endpoint.draining, endpoint.health.hard) != before:
            # What silences acts at once, not at the next step; alone, since an agent may say it often.
            endpoint.health.silence(now_ns=now_ns)
            endpoint.refresh()
            self.version += 1
        return True

    def _recognise(self, endpoint: Endpoint, report: ReplicaReport) -> None:
        """A report names the cards: what is known of such ones counts from now on."""
        if not report.gpus:
            return
        name, count = report.gpus[0].name, len(report.gpus)
        if name and not endpoint.hardware:
            endpoint.hardware, endpoint.gpus = name, count
            self._equip(endpoint, self.pools[endpoint.pool])
        endpoint.speed.saw_rates(
            prefill_tokens_per_s=report.prefill_tokens_per_s,
            decode_tokens_per_s=report.decode_tokens_per_s,
            batch=float(report.running or 0),
        )

    def _equip(self, endpoint: Endpoint, pool: Pool) -> None:
        """Give an endpoint its pool's knowledge of its hardware; its own factor stays."""
        model = pool.speed_of(endpoint.hardware, endpoint.gpus)
        if endpoint.speed.model is not model:
            factor, endpoint.speed = endpoint.speed.factor, Speed(model)
            endpoint.speed.factor = factor
            endpoint.admission = Admission(model.admission)
            endpoint.slots = Slots(model.slots)
        endpoint.prefill_budget_tokens = pool.prefill_budget_tokens
        if pool.adapters is None:
            endpoint.adapters = None
        elif endpoint.adapters is None:
            endpoint.adapters = LoadedAdapters(pool.adapters, pool.adapter_counts)
        else:
            endpoint.adapters.of, endpoint.adapters.counts = pool.adapters, pool.adapter_counts
        if not endpoint.kv_capacity_tokens:
            endpoint.kv_capacity_tokens = pool.kv_capacity_tokens

    def silenced(self, address: str) -> None:
        """Its agent has said good-bye: what it said is stale from now on.

        Its word on the replica's state holds for a while yet: an agent may leave while a model loads.
        """
        endpoint = self._by_address.get(address)
        if endpoint is not None and endpoint.reported_ns is not None:
            endpoint.reported_ns -= STALE_NS + 1

    def answered(self, endpoint: Endpoint, outcome: Outcome, *, now_ns: int, failed: bool) -> None:
        """An answer of an endpoint ended, or an attempt on it failed."""
        diagnosis = self._diagnoses.get(endpoint.address)
        if diagnosis is not None:
            diagnosis.answered(outcome, now_ns=now_ns, failed=failed)

    def newcomer(self, address: str, *, now_ns: int) -> None:
        """An agent has registered an endpoint: it gets no traffic before it has answered us."""
        endpoint = self._by_address.get(address)
        if endpoint is not None:
            self._diagnoses[address].registered()
            endpoint.health.silence(now_ns=now_ns)
            endpoint.refresh()
            self.version += 1

    def looks(self, *, newcomers: bool = False) -> list[tuple[str, int | None, int]]:
        """Whom we must look at ourselves: (address, when last, failed attempts since it answered).

        `newcomers` gives those alone that agents brought.
        """
        return [
            (endpoint.address, diagnosis.reach.looked_ns, endpoint.failures)
            for endpoint in self.endpoints
            if (diagnosis := self._diagnoses[endpoint.address]).unspoken
            and (diagnosis.newcomer or not newcomers)
        ]

    def last_look(self, address: str) -> Look | None:
        """What our own last look at an endpoint found; None where none was made."""
        diagnosis = self._diagnoses.get(address)
        return diagnosis.reach.last if diagnosis is not None else None

    def looked(
        self, address: str, found: Look, *, now_ns: int, why: str = ""
    ) -> tuple[Look | None, Look | None]:
        """We have looked at an endpoint's health page; gives what was found before, and now."""
        endpoint = self._by_address.get(address)
        if endpoint is None:
            return None, None
        pool = self.pools[endpoint.pool]
        reached = found is Look.SILENT and any(
            self._diagnoses[each.address].reach.reached for each in pool.endpoints
        )
        diagnosis, hard = self._diagnoses[address], endpoint.health.hard
        before = diagnosis.reach.last
        back = diagnosis.looked(found, now_ns=now_ns, neighbours_reached=reached, why=why)
        if back and before in (Look.REFUSED, Look.LOADING):
            # Another process: what the one before had cached is gone.
            self._emptied(endpoint)
        if endpoint.health.hard != hard:
            endpoint.health.silence(now_ns=now_ns)
            endpoint.refresh()
            self.version += 1
        return before, found

    def _emptied(self, endpoint: Endpoint) -> None:
        """Another process of its engine: nothing is held there, and nothing learnt of its size."""
        self.pools[endpoint.pool].forget(endpoint.address)
        endpoint.cache_tokens = 0
        endpoint.cache.began_anew()
        if endpoint.adapters is not None:
            endpoint.adapters.emptied()

    def drain(self, address: str, *, draining: bool) -> bool:
        """An operator's drain; false for an address that is not here."""
        diagnosis = self._diagnoses.get(address)
        if diagnosis is None or address not in self._by_address:
            return False
        diagnosis.ordered_drain = draining
        diagnosis.refresh_drain()
        diagnosis.endpoint.refresh()
        self.version += 1
        return True

    def clear_faults(self, address: str) -> list[str] | None:
        """An operator's word that a GPU was seen to; None for an address that is not here."""
        diagnosis = self._diagnoses.get(address)
        return None if diagnosis is None else diagnosis.clear_faults()

    def step(self, *, now_ns: int, pools: Iterable[Pool] | None = None) -> None:
        """Let time pass: health follows its causes, telemetry ages, what has left is let go."""
        as_of_ns = self.absence.as_of_ns(now_ns=now_ns)
        for pool in self.pools.values() if pools is None else pools:
            diagnoses = [self._diagnoses[endpoint.address] for endpoint in pool.endpoints]
            before = [(e.ready, round(e.weight, 2)) for e in pool.endpoints]
            pool.blind = step_pool(diagnoses, now_ns=now_ns, as_of_ns=as_of_ns)
            if pool.cold.wanted and pool.ready:
                pool.cold.over()
            after = [(e.ready, round(e.weight, 2)) for e in pool.endpoints]
            if before != after:
                self.version += 1
        gone = [address for address, endpoint in self.leaving.items() if endpoint.requests == 0]
        for address in gone:
            del self.leaving[address]
            self._diagnoses.pop(address, None)
            self.version += 1

    def _check(self, members: dict[str, list[Member]]) -> None:
        addresses = [member.address for each in members.values() for member in each]
        assert len(addresses) == len(set(addresses)), "an address stands twice in the fleet"

    def _settle_members(self, members: dict[str, list[Member]]) -> None:
        known = {**self.leaving, **self._by_address}
        by_address: dict[str, Endpoint] = {}
        for name, pool in self.pools.items():
            pool.endpoints = []
            for member in members[name]:
                endpoint = known.get(member.address) or Endpoint(address=member.address, pool=name)
                if member.address not in known or endpoint.pool != name:
                    # Each pool has a rotation of its own.
                    endpoint.turn = pool.turn
                endpoint.listed(member, name)
                self._equip(endpoint, pool)
                pool.endpoints.append(endpoint)
                by_address[member.address] = endpoint
                self.leaving.pop(member.address, None)
                if member.address not in self._diagnoses:
                    self._diagnoses[member.address] = Diagnosis(endpoint)
        for address, endpoint in self._by_address.items():
            if address not in by_address:
                if endpoint.requests > 0:
                    # Its diagnosis waits with it: a drain outlives a replica's blink.
                    self.leaving[address] = endpoint
                else:
                    self._diagnoses.pop(address, None)
                before = self.pools.get(endpoint.pool)
                if before is not None:
                    before.forget(address)
        self._by_address = by_address
        self.version += 1
