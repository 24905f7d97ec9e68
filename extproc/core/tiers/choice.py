"""Which of two places serves a request: here, at the edge, or there, in the centre. Pure.

Owns the order of the rules. The first that applies decides:

1. What may not leave stays (`hops`, `tenant`).
2. The centre does not have the model (`only_here`), or cannot take it (`centre_away`): it stays.
3. The model is only in the centre (`only_there`), or no replica here is ready (`broken`): it goes.
4. Its client's place (`place`) or its service class is served on one side (`class`).
5. A complex one goes (`complex`), unless the centre is full and this place is sooner (`centre_full`).
6. The replicas here are throttled and the centre is sooner (`hot`), or it would wait here longer than
   `wait_ns` and begin sooner in the centre (`full`): it goes.
7. It would miss its targets here and meet them in the centre (`late`): it goes.
8. A simple one stays (`simple`).
9. The centre is sooner by the margin and worth its price (`sooner`): it goes. Else it stays (`near`).

What stays without a ready replica here gets a smaller model here, where there is one. So a request that has
a place is never without one: the only choice of a place that is not ready is where none is.

Hysteresis: rules 5 to 9 compare with bounds that favour the side to which requests of this kind went last.
"""

from __future__ import annotations

from extproc.core.families import DEFAULT, features
from extproc.core.families.score import Weights
from extproc.core.request import Request
from extproc.core.tiers.values import (
    HERE,
    SMALLER,
    THERE,
    SiteOffer,
    TierChoice,
    TierReason,
    TierRequest,
    TierRule,
)


def complexity_of(request: Request, weights: Weights = DEFAULT) -> float | None:
    """How complex a request is, 0 to 1, as families see it; None where its text is not known."""
    return weights.score(features(request)) if request.segments else None


def place(
    request: TierRequest,
    here: SiteOffer | None,
    there: SiteOffer | None,
    rule: TierRule,
    *,
    smaller: SiteOffer | None = None,
) -> TierChoice:
    """Where a request is served. None is a place without the model.

    `smaller` is what a smaller model here offers, where the tenant allows it; it is taken only where nothing
    else can serve. Where nothing can at all the choice is the place that has the model, which says so itself.
    """
    if request.hops >= rule.hops_max:
        return _stays(here, smaller, "hops")
    if not request.may_leave:
        return _stays(here, smaller, "tenant")
    if there is None:
        return _stays(here, smaller, "only_here")
    if not there.ready:
        return _stays(here, smaller, "centre_away")
    unsure = not there.confident
    if here is None:
        return TierChoice(THERE, "only_there", unsure)
    if not here.ready:
        return TierChoice(THERE, "broken", unsure)
    if request.side:
        return TierChoice(request.side, "place", unsure)
    if request.service_class in rule.stays:
        return TierChoice(HERE, "class", unsure)
    if request.service_class in rule.goes:
        return TierChoice(THERE, "class", unsure)
    reason = _leaves(request, here, there, rule)
    if reason:
        return TierChoice(THERE, reason, unsure)
    return TierChoice(HERE, _stays_for(request, rule), unsure)


def is_simple(request: TierRequest, rule: TierRule) -> bool:
    """Whether it is short and simple enough to stay; what nobody can read is judged by its length."""
    return (
        request.prompt_tokens <= rule.prompt_tokens_simple
        and request.output_tokens <= rule.output_tokens_simple
        and (request.complexity is None or request.complexity <= rule.complexity_simple)
    )


def is_complex(request: TierRequest, rule: TierRule) -> bool:
    """Whether it is long or complex enough to go."""
    return (
        request.prompt_tokens > rule.prompt_tokens_complex
        or request.output_tokens > rule.output_tokens_complex
        or (request.complexity is not None and request.complexity > rule.complexity_complex)
    )


def _stays(here: SiteOffer | None, smaller: SiteOffer | None, why: TierReason) -> TierChoice:
    """It cannot go: here, else with a smaller model, else where its model is."""
    if here is not None and here.ready:
        return TierChoice(HERE, why)
    if smaller is not None and smaller.ready:
        return TierChoice(SMALLER, why)
    # Nothing can take it. Who waits here may yet be served; of a model that is only there, there is asked.
    return TierChoice(THERE if here is None and why == "centre_away" else HERE, why)


def _stays_for(request: TierRequest, rule: TierRule) -> TierReason:
    if is_complex(request, rule):
        return "centre_full"
    return "simple" if is_simple(request, rule) else "near"


def _leaves(request: TierRequest, here: SiteOffer, there: SiteOffer, rule: TierRule) -> TierReason | None:
    """Why it goes, where both places are ready; None where it stays."""
    out = request.leaning == THERE
    total_ns = here.total_ns(request.output_tokens)
    gain_ns = total_ns - there.total_ns(request.output_tokens)
    margin_ns = max(rule.sooner_ns, rule.sooner_share * total_ns)
    if not there.confident:
        margin_ns *= rule.unsure_factor
    # Who went there last goes on doing so while that costs less than the margin.
    no_later = gain_ns > (-margin_ns if out else 0)
    if is_complex(request, rule):
        bound_ns = rule.wait_ns * (1.0 if out else rule.back_share)
        return "complex" if there.begins_ns <= bound_ns or no_later else None
    if no_later and here.hot:
        return "hot"
    # By the beginnings alone: a crowd's first tokens are late, however fast the others come.
    begins_ns = here.begins_ns + (rule.sooner_ns if out else 0)
    if here.begins_ns > rule.wait_ns * (rule.back_share if out else 1.0) and there.begins_ns < begins_ns:
        return "full"
    # Half-way between all of the targets and `back_share` of them.
    closer = (1.0 + rule.back_share) / 2
    if _late(request, here, closer if out else 1.0) and not _late(request, there, 1.0 if out else closer):
        return "late"
    if is_simple(request, rule):
        return None
    if gain_ns > margin_ns * (rule.back_share if out else 1.0) and _worth(here, there, gain_ns, rule):
        return "sooner"
    return None


def _late(request: TierRequest, offer: SiteOffer, share: float) -> bool:
    """Whether an offer misses the request's targets, or would miss so much of them."""
    return 0 < request.ttft_ns * share < offer.first_ns or 0 < request.tpot_ns * share < offer.token_ns


def _worth(here: SiteOffer, there: SiteOffer, gain_ns: float, rule: TierRule) -> bool:
    """Whether being so much sooner may cost what it does."""
    return rule.cost_per_s is None or there.cost - here.cost <= rule.cost_per_s * gain_ns / 1e9
