"""What the choice between edge and centre is made of: offers, the rule, the request, the choice. Values.

"Here" is the site that decides (the edge), "there" the other one (the centre).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Where = Literal["here", "there", "here_smaller"]
HERE: Final = "here"
THERE: Final = "there"
#: A smaller model here, in the place of one that is only in the centre.
SMALLER: Final = "here_smaller"

TierReason = Literal[
    "simple",
    "near",
    "class",
    "place",
    "budget",
    "tenant",
    "hops",
    "only_here",
    "centre_away",
    "centre_full",
    "complex",
    "sooner",
    "late",
    "full",
    "hot",
    "broken",
    "only_there",
]
#: Every reason, and what it says.
REASONS: Final[Mapping[TierReason, str]] = MappingProxyType(
    {
        "simple": "short and simple enough to stay",
        "near": "the centre is not sooner by the margin",
        "class": "the service class is served on this side",
        "place": "clients of this place are served on this side",
        "budget": "the other pool's budget or rate limit has no room for it",
        "tenant": "the tenant does not let it leave",
        "hops": "it has passed as many gateways as it may",
        "only_here": "the centre does not have the model",
        "centre_away": "the centre cannot be reached or has no ready replica",
        "centre_full": "complex, but it would wait too long in the centre",
        "complex": "long or complex enough to go to the centre",
        "sooner": "the centre is sooner by the margin, the way included",
        "late": "it would miss its targets here and meet them in the centre",
        "full": "it would wait too long here, and less in the centre",
        "hot": "the replicas here are throttled",
        "broken": "no replica here is ready",
        "only_there": "the model is only in the centre",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOffer:
    """What one place offers for a request. Durations are nanoseconds from now, 0 or more.

    `ready`: something there can take it, and the way there is open. `begins_ns` is when it would begin,
    queues included, `first_ns` when its first token would be here, `token_ns` the time of each further token;
    of another site with the way. `cost` is the request's price there, in the currency of prices.
    `confident` false: the word of it is old, and the times are what ended requests have taught. `hot`: every
    replica there is throttled.
    """

    ready: bool
    begins_ns: int
    first_ns: int
    token_ns: int
    cost: float = 0.0
    confident: bool = True
    hot: bool = False

    def total_ns(self, output_tokens: int) -> int:
        """From now to the last of so many tokens."""
        return self.first_ns + max(0, output_tokens - 1) * self.token_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRule:
    """What the configuration says of edge and centre.

    A request is *simple*, and stays, where its prompt, its output and its complexity (0 to 1) are all at
    most the `simple` bounds. It is *complex*, and goes, where any of them is above the `complex` bounds. In
    between the times decide: it leaves for `sooner_ns` and `sooner_share` (0 to 1) of its whole time here,
    whichever is more, and comes back below `back_share` (0 to 1) of that. A place is full where a request
    would begin later than `wait_ns`. Classes of `stays` are served here, those of `goes` in the centre, while
    a replica is ready there. `hops_max` is how many gateways may have sent it on. `cost_per_s` is what a
    second sooner may cost more; None any price. Without fresh word of the centre the margin is
    `unsure_factor` (1 or more) times as wide.
    """

    prompt_tokens_simple: int = 1_000
    output_tokens_simple: int = 256
    complexity_simple: float = 0.35
    prompt_tokens_complex: int = 6_000
    output_tokens_complex: int = 2_048
    complexity_complex: float = 0.7
    sooner_ns: int = 250_000_000
    sooner_share: float = 0.25
    back_share: float = 0.5
    wait_ns: int = 500_000_000
    unsure_factor: float = 2.0
    cost_per_s: float | None = None
    stays: frozenset[str] = frozenset()
    goes: frozenset[str] = frozenset()
    hops_max: int = 1

    def problems(self) -> list[str]:
        """What cannot be, a line each."""
        found = [
            f"{name}_simple ({low:g}) must be at most {name}_complex ({high:g})"
            for name in ("prompt_tokens", "output_tokens", "complexity")
            if not 0 <= (low := getattr(self, f"{name}_simple")) <= (high := getattr(self, f"{name}_complex"))
        ]
        found += [
            f"{name} must lie in 0..1, not {value:g}"
            for name in ("sooner_share", "back_share")
            if not 0.0 <= (value := getattr(self, name)) <= 1.0
        ]
        if min(self.sooner_ns, self.wait_ns, self.hops_max) < 0:
            found.append("sooner_ns, wait_ns and hops_max must not be negative")
        if self.unsure_factor < 1.0:
            found.append(f"unsure_factor must be at least 1, not {self.unsure_factor:g}")
        if both := sorted(self.stays & self.goes):
            found.append(f"{', '.join(both)} stand in stays and in goes; take each out of one")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRequest:
    """What is known of a request before it is placed.

    `output_tokens` are expected, at most what it asks for, of one sequence. `complexity` is the score of
    families (0 simple, 1 complex), None where nobody can read the text. `hops` gateways have sent it on.
    `ttft_ns` and `tpot_ns` are its targets, 0 for none. `may_leave` false: its tenant, its data or its route
    keeps it here, whatever happens. `side` is where its client's place is
    served ("": as for everybody), `leaning` where requests of its kind went last (`Leanings`).
    """

    prompt_tokens: int
    output_tokens: int
    complexity: float | None = None
    service_class: str = ""
    hops: int = 0
    may_leave: bool = True
    ttft_ns: int = 0
    tpot_ns: int = 0
    leaning: Literal["here", "there"] = HERE
    side: Literal["", "here", "there"] = ""


@dataclass(frozen=True, slots=True)
class TierChoice:
    """Where a request is served, and why. `unsure`: there was no fresh word of the centre."""

    where: Where
    reason: TierReason
    unsure: bool = False

    def text(self) -> str:
        """One line for people."""
        place = {HERE: "here", THERE: "centre", SMALLER: "here, a smaller model"}[self.where]
        unsure = "; no fresh word of the centre, by what requests took" if self.unsure else ""
        return f"{place}: {REASONS[self.reason]}{unsure}"
