"""What is wrong with a file's families, across its sections."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from extproc.config.locations import Loc, repeats
from extproc.config.model import Config
from extproc.meant import meant


def family_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Families that nobody could use as they are meant."""
    families = config.families
    served = sorted({model for pool in config.pools for model in pool.models})
    yield from repeats((("families", i, "name"), family.name) for i, family in enumerate(families))
    for i, family in enumerate(families):
        if family.name in served:
            message = f"{family.name!r} is a model's name; clients could not tell them apart, so rename it"
            yield ("families", i, "name"), message
        yield from repeats((("families", i, "models", j), model) for j, model in enumerate(family.models))
        for j, model in enumerate(family.models):
            if model not in served:
                message = f"no pool serves {model!r}; pools serve {', '.join(served)}{meant(model, served)}"
                yield ("families", i, "models", j), message
        thresholds = family.thresholds
        if thresholds is None:
            continue
        if len(thresholds) != len(family.models) - 1:
            message = f"has {len(thresholds)}; write {len(family.models) - 1}, one between each two models"
            yield ("families", i, "thresholds"), message
        if any(first >= second for first, second in pairwise(thresholds)):
            yield ("families", i, "thresholds"), "do not rise; the first is the smallest model's end"
    yield from _floors(config)


def _floors(config: Config) -> Iterator[tuple[Loc, str]]:
    families = config.families
    for i, tenant in enumerate(config.tenants):
        floor = tenant.quality_floor
        if floor is None:
            continue
        location: Loc = ("tenants", i, "quality_floor")
        if not families:
            yield location, "does nothing without 'families'; list one, or remove it"
        elif isinstance(floor, str) and not any(floor in family.models for family in families):
            known = ", ".join(dict.fromkeys(model for family in families for model in family.models))
            yield location, f"{floor!r} is in no family; there are {known}"
        elif isinstance(floor, int) and floor > max(len(family.models) for family in families):
            most = max(len(family.models) for family in families)
            yield location, f"is {floor}; the largest family has {most} models"
        elif tenant.models is not None:
            # Late, as elsewhere here: most files have no floors, and a check need not import what decides.
            from extproc.core.families import floor_of

            for family in families:
                left = family.models[floor_of(tuple(family.models), floor) :]
                allowed = [model for model in family.models if model in tenant.models]
                if allowed and not set(left) & set(allowed):
                    yield (
                        location,
                        (
                            f"leaves the tenant no model of the family {family.name!r}: "
                            f"tenants[{i}].models has {', '.join(allowed)} of it; lower it, or add a model"
                        ),
                    )
