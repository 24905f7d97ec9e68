"""What is wrong with a file's spill-over, across its sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from extproc.config.locations import Loc
from extproc.config.site_checks import returns
from extproc.meant import meant

if TYPE_CHECKING:
    from extproc.config.model import Config


def spill_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Yield (location, message)."""
    pools = {pool.name: pool for pool in config.pools}
    targets = set()
    for i, pool in enumerate(config.pools):
        spill = pool.spill
        if spill is None:
            continue
        at: Loc = ("pools", i, "spill")
        there = pools.get(spill.to)
        if there is None or there is pool:
            others = sorted(name for name in pools if name != pool.name)
            said = "is this pool itself" if there is pool else "no such pool"
            yield (
                (*at, "to"),
                f"{said}; write one of {', '.join(others) or 'another pool'}{meant(spill.to, others)}",
            )
            continue
        targets.add(there.name)
        if there.spill is not None:
            message = f"pool {there.name!r} spills itself; a request goes on once only: remove one of the two"
            yield (*at, "to"), message
        for model in spill.models:
            if model not in pool.models:
                message = (
                    f"is no model of this pool; it serves {', '.join(pool.models)}{meant(model, pool.models)}"
                )
                yield (*at, "models", model), message
        for model in pool.models:
            called = spill.models.get(model, model)
            if called not in there.models:
                known = ", ".join(there.models)
                yield (
                    (*at, "models"),
                    (
                        f"{model!r} would be {called!r} in pool {there.name!r}, which serves {known}; "
                        f"write {{{model}: {there.models[0]}}}{meant(called, there.models)}"
                    ),
                )
        price = there.price
        if spill.budget_per_hour is not None and not (price.input_per_million or price.output_per_million):
            yield (
                (*at, "budget_per_hour"),
                f"counts nothing while pool {there.name!r} has no price; add price to it",
            )
        if spill.after_failure and there.remote is not None:
            message = (
                f"pool {there.name!r} is at another site, whose token is taken once; remove after_failure"
            )
            yield (*at, "after_failure"), message
        elif spill.after_failure and not returns(pool, there):
            message = (
                f"needs the same upstream.http2 here and in pool {there.name!r}, and not auto: Envoy sends "
                "the same request once more"
            )
            yield (*at, "after_failure"), message
        if there.tenants is not None:
            message = f"pool {there.name!r} is reserved for tenants; remove its tenants, or spill elsewhere"
            yield (*at, "to"), message
    for i, tenant in enumerate(config.tenants):
        if tenant.spill is not None and not targets:
            yield (
                ("tenants", i, "spill"),
                "does nothing while no pool has 'spill'; add it to one, or remove this",
            )
    for i, pool in enumerate(config.pools):
        if pool.rate_limits is not None and pool.name not in targets:
            message = "bounds what is spilled to this pool, and no pool spills to it; remove it, or add spill"
            yield ("pools", i, "rate_limits"), message
