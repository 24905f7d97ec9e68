"""Whether a request is served here or by another site: the offers of both put before core/tiers. Pure.

Owns what is asked and remembered of it. The rules are core/tiers', when requests leave for other causes is
core/spill's; who may leave at all stands there as well.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from extproc.core.accounts import Price
from extproc.core.fairqueue import FairQueue
from extproc.core.fleet import Pool
from extproc.core.load import MS_NS
from extproc.core.remote.links import SiteLinks
from extproc.core.remote.offers import offer_here, offer_there
from extproc.core.remote.values import Tiered
from extproc.core.request import Request
from extproc.core.tenant import Tenant
from extproc.core.tiers import (
    HERE,
    THERE,
    Leanings,
    SiteOffer,
    TierRequest,
    TierRule,
    complexity_of,
    place,
)
from extproc.core.work import Work


class Offers(NamedTuple):
    """Of whom offers are made: the queue, and the prices of both pools."""

    queue: FairQueue
    home_price: Price
    there_price: Price


class SiteChoices:
    """The choices of one service: what it knows of other sites, and where requests of a kind went last."""

    def __init__(self) -> None:
        self.links = SiteLinks()
        self._leanings = Leanings()
        #: Requests by the reason of their choice.
        self.counts: Counter[str] = Counter()

    def choose(
        self,
        request: Request,
        work: Work,
        tenant: Tenant,
        *,
        home: Pool | None,
        there: Pool,
        called: str,
        rule: TierRule,
        offers: Offers,
        may_leave: bool = True,
        smaller: SiteOffer | None = None,
        now_ns: int,
    ) -> Tiered:
        """Where a request goes; `called` is its model's name there. Changes nothing."""
        asked = TierRequest(
            prompt_tokens=work.input_tokens,
            output_tokens=work.output_tokens // max(1, work.sequences),
            complexity=complexity_of(request),
            service_class=tenant.service_class,
            hops=request.hops,
            side=tenant.side,
            may_leave=may_leave,
            ttft_ns=round(work.ttft_ms * MS_NS),
            tpot_ns=round(work.tpot_ms * MS_NS),
        )
        name = "" if home is None else home.name
        if self._leanings.of(name, asked, rule) != HERE:
            asked = replace(asked, leaning=THERE)
        here = None
        if home is not None:
            here = offer_here(home, work, tenant, offers.queue, price=offers.home_price, now_ns=now_ns)
        link = self.links.by_pool[there.name]
        far = offer_there(
            link, there, called, work, tenant, offers.queue, price=offers.there_price, now_ns=now_ns
        )
        choice = place(asked, here, far, rule, smaller=smaller)
        word = None if link.digest is None else link.digest.of(called)
        prefill_ms = 0.0 if word is None else word.own_of(work.input_tokens)
        return Tiered(name, there.name, work.sequences, prefill_ms, asked, rule, choice)

    def went(self, tiered: Tiered, *, now_ns: int) -> None:
        """A request was placed so."""
        if tiered.choice.where == THERE and (link := self.links.by_pool.get(tiered.there)) is not None:
            link.sent(tiered.sequences, tiered.prefill_ms, now_ns=now_ns)
        self.counts[tiered.choice.reason] += 1
        self._leanings.went(tiered.home, tiered.asked, tiered.rule, tiered.choice)
