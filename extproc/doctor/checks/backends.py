"""Checks of the model servers: do they answer, and are they what the file says?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from extproc.config.model import EndpointConfig, PoolConfig
from extproc.doctor.evidence import Backend, Evidence, Failed
from extproc.doctor.finding import Check, Said, error, note, warning
from extproc.engines import traits_of


def _answering(evidence: Evidence) -> Iterator[tuple[PoolConfig, EndpointConfig, Backend]]:
    for pool in evidence.config.pools:
        if pool.remote is not None:
            continue
        for endpoint in pool.endpoints:
            seen = evidence.backends.get(endpoint.address)
            if isinstance(seen, Backend):
                yield pool, endpoint, seen


def reachable(evidence: Evidence) -> Iterator[Said]:
    """Each listed replica answers from here, and says that it is well."""
    for pool in evidence.config.pools:
        if pool.remote is not None:
            continue  # another site's gateway lets in whom it knows: the service asks it (checks/sites.py)
        for endpoint in pool.endpoints:
            seen = evidence.backends.get(endpoint.address)
            if isinstance(seen, Failed):
                yield error(
                    f"replica {endpoint.address} of pool {pool.name} does not answer: {seen.why}",
                    "start the engine there, correct its address under pools, or take it out; if only this "
                    "machine "
                    "cannot reach it, run doctor where Envoy runs",
                )
            elif (
                isinstance(seen, Backend)
                and seen.health is not None
                and seen.health >= 400
                and seen.health != 404
            ):
                yield error(
                    f"replica {endpoint.address} of pool {pool.name} answers /health with {seen.health}",
                    "it still loads, or its engine failed: see the engine's log",
                )


def engine(evidence: Evidence) -> Iterator[Said]:
    """Each replica runs the pool's engine."""
    for pool, endpoint, seen in _answering(evidence):
        if seen.engine is None:
            yield warning(
                f"{endpoint.address} of pool {pool.name} answers, but as no engine that is known",
                "see that the address is a model server's, and no proxy's",
            )
        elif seen.engine != pool.engine:
            yield error(
                f"{endpoint.address} runs {seen.engine}, but pool {pool.name} says engine: {pool.engine}",
                f"set engine: {seen.engine} in pool {pool.name}, or move the endpoint to a pool of its own",
            )


def models(evidence: Evidence) -> Iterator[Said]:
    """The names that clients ask for are those that engines serve."""
    for pool in evidence.config.pools:
        said = {
            end.address: seen.models for one, end, seen in _answering(evidence) if one is pool and seen.models
        }
        kinds = {frozenset(names) for names in said.values()}
        if len(kinds) > 1:
            shown = "; ".join(
                f"{address} serves {', '.join(names)}" for address, names in list(said.items())[:3]
            )
            yield error(
                f"pool {pool.name} mixes models: {shown}",
                "a pool's replicas serve the same model; give each model a pool of its own",
            )
            continue
        for address, names in said.items():
            missing = [name for name in pool.models if name not in names]
            if not missing:
                continue
            served = ", ".join(names)
            if traits_of(pool.engine).strict_models:
                yield error(
                    f"{address} of pool {pool.name} does not serve {', '.join(missing)}; it serves {served}",
                    f"write models: [{served}] in pool {pool.name}, or start it with --served-model-name",
                )
            elif len(missing) == len(pool.models):
                yield warning(
                    f"{address} serves {served}, while pool {pool.name} is for {', '.join(pool.models)}",
                    f"if that is a wrong replica, correct the address; if it is an alias, add {names[0]} "
                    "to the pool's models",
                )


def permits(evidence: Evidence) -> Iterator[Said]:
    """No more is sent to a replica than it takes at once."""
    for pool, endpoint, seen in _answering(evidence):
        most = seen.max_concurrent
        if not most or endpoint.max_concurrent == most:
            continue
        where = f"{endpoint.address} of pool {pool.name}"
        mend = f"set max_concurrent: {most} on that endpoint"
        if endpoint.max_concurrent < most:
            yield note(
                f"{where} takes {most} requests at once, max_concurrent is {endpoint.max_concurrent}", mend
            )
        elif not (engine := traits_of(seen.engine or pool.engine)).queues:
            yield error(
                f"{where} has max_concurrent {endpoint.max_concurrent}, but the engine takes {most}: above "
                f"it {engine.title or engine.name} refuses inside a 200 answer, where no retry can help",
                mend,
            )
        else:
            yield warning(
                f"{where} has max_concurrent {endpoint.max_concurrent}, but the engine runs {most} at once "
                "and "
                "queues the rest, where nobody can order them",
                mend,
            )


def _missing(evidence: Evidence) -> str:
    if any(pool.endpoints for pool in evidence.config.pools):
        return "" if evidence.backends else "not asked (--offline)"
    return "the file lists no endpoints"


CHECKS: Final = (
    Check(id="replicas.reachable", about="every listed replica answers", look=reachable, missing=_missing),
    Check(id="replicas.engine", about="it runs the engine that the file says", look=engine, missing=_missing),
    Check(id="replicas.models", about="it serves the pool's models", look=models, missing=_missing),
    Check(
        id="replicas.permits",
        about="max_concurrent is the engine's own limit",
        look=permits,
        missing=_missing,
    ),
)
