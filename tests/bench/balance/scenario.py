"""The balancing scenario: who asks what and when, of which engine. Pure, drawn from a seed.

Owns the constants. 48 tenants, Zipf; each has a long prefix of its own (a system prompt) that all its
requests begin with, and a tail that no other request has. Tokens are the simulator's: 4 bytes each.

The constants of an engine that published comparisons do not tell (prefix and tail lengths, output lengths,
cache, speed) were chosen so that Envoy's LEAST_REQUEST and sglang's cache_aware over the replicas give about
the rows that were measured for them elsewhere. docs/performance.md says how near they come.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from types import MappingProxyType

BYTES_PER_TOKEN = 4
BLOCK_TOKENS = 16

REPLICAS = 4
SLOTS = 8
TENANTS = 48
TAIL_TOKENS = (16, 96)
OUTPUT_SIGMA, OUTPUT_MAX = 0.5, 128
#: The end of each prompt, which fixes the answer's length: so many tokens of the tail.
MARKER_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Mock:
    """A simulated engine, and the load that is played on four of it unless another is asked for.

    Tokens, except: `parallel` prompts that a replica takes side by side, each as fast as alone (1 is TGI);
    `slowdown` of every step against the hardware's published timings; `zipf`, the exponent of the tenants'
    shares; `rate_per_s` and `requests`.
    """

    parallel: int
    hardware: str
    slowdown: float
    kv_tokens: int
    prefix_tokens: tuple[int, int]
    zipf: float
    output_median: int
    rate_per_s: float
    requests: int


#: "parallel" and "serial" are one engine, whose prompts of about 1,100 tokens start side by side, or one at a
#: time. "tgi" is the older scenario: another speed, longer answers, 18 requests/s.
ENGINES: Mapping[str, Mock] = MappingProxyType(
    {
        "parallel": Mock(
            parallel=SLOTS,
            hardware="a100-80g/llama-3-8b",
            slowdown=2.4,
            kv_tokens=20_000,
            prefix_tokens=(900, 1_200),
            zipf=0.9,
            output_median=8,
            rate_per_s=70.0,
            requests=887,
        ),
        "serial": Mock(
            parallel=1,
            hardware="a100-80g/llama-3-8b",
            slowdown=1.65,
            kv_tokens=20_000,
            prefix_tokens=(900, 1_200),
            zipf=0.9,
            output_median=8,
            rate_per_s=40.0,
            requests=490,
        ),
        "tgi": Mock(
            parallel=1,
            hardware="a100-80g/llama-3-8b",
            slowdown=1.0,
            kv_tokens=17_000,
            prefix_tokens=(1_000, 1_600),
            zipf=1.0,
            output_median=32,
            rate_per_s=18.0,
            requests=887,
        ),
    }
)

#: What may differ from one run to the next: "hetero" has a replica that is slower, "flaky" one that answers
#: 503 to a share, "hard" both, "burst" and "longtail" see below.
SHAPES = ("uniform", "hetero", "flaky", "burst", "longtail", "hard")
STRAGGLER = 3.0
FLAKY_SHARE = 0.5
#: "burst": the rate is so many times the mean for the first part of each period, and less in the rest.
BURST_PERIOD_S, BURST_PART, BURST_TIMES = 5.0, 0.2, 2.5
#: "longtail": outputs with this sigma, and tenants that are nearly alike.
LONGTAIL_SIGMA, LONGTAIL_ZIPF, LONGTAIL_MAX = 1.1, 0.6, 512


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: when it comes (seconds from the start), whose it is, and what it costs (tokens)."""

    at_s: float
    tenant: int
    serial: int
    prefix_tokens: int
    tail_tokens: int
    output_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """Its whole prompt."""
        return self.prefix_tokens + self.tail_tokens

    def prompt(self, seed: int) -> str:
        """Its text, ASCII: `BYTES_PER_TOKEN` bytes a token; its end fixes its answer's length."""
        marker = f"[[sim:out={self.output_tokens}]]".rjust(MARKER_TOKENS * BYTES_PER_TOKEN)
        return (
            text(f"{seed}/tenant/{self.tenant}", self.prefix_tokens)
            + text(f"{seed}/request/{self.serial}", self.tail_tokens - MARKER_TOKENS)
            + marker
        )


def text(key: str, tokens: int) -> str:
    """Words that no other key has: three letters and a blank a token."""
    rng = Random(key)
    letters = rng.choices("abcdefghijklmnopqrstuvwxyz", k=3 * tokens)
    return "".join("".join(letters[at : at + 3]) + " " for at in range(0, 3 * tokens, 3))


def asks(mock: Mock, *, seed: int, shape: str, rate_per_s: float, requests: int) -> list[Ask]:
    """The requests of a run, in order of arrival."""
    rng = Random(f"{seed}/asks")
    zipf = LONGTAIL_ZIPF if shape == "longtail" else mock.zipf
    sigma, most = (LONGTAIL_SIGMA, LONGTAIL_MAX) if shape == "longtail" else (OUTPUT_SIGMA, OUTPUT_MAX)
    shares = list(accumulate(1.0 / (k + 1) ** zipf for k in range(TENANTS)))
    prefixes = [rng.randint(*mock.prefix_tokens) for _ in range(TENANTS)]
    at_s, found = 0.0, []
    for serial in range(requests):
        at_s += rng.expovariate(rate_per_s * (_burst(at_s) if shape == "burst" else 1.0))
        tenant = bisect_left(shares, rng.random() * shares[-1])
        output = min(most, max(1, round(mock.output_median * rng.lognormvariate(0.0, sigma))))
        found.append(Ask(at_s, tenant, serial, prefixes[tenant], rng.randint(*TAIL_TOKENS), output))
    return found


def _burst(at_s: float) -> float:
    """The rate at a time, in means."""
    inside = at_s % BURST_PERIOD_S < BURST_PART * BURST_PERIOD_S
    return BURST_TIMES if inside else (1.0 - BURST_PART * BURST_TIMES) / (1.0 - BURST_PART)


def most_output(shape: str) -> int:
    """The limit that clients state."""
    return LONGTAIL_MAX if shape == "longtail" else OUTPUT_MAX
