"""What a service class aims at and how long its requests may wait. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSpec:
    """A service class: how long its requests may wait, the first token they aim at, and each further one.

    Prompts above `long_prompt_tokens` have a target and a hold of their own.
    """

    name: str = "standard"
    hold_ns: int = 5_000_000_000
    ttft_ns: int = 1_000_000_000
    tpot_ns: int = 100_000_000
    long_prompt_tokens: int = 4_000
    long_ttft_ns: int = 5_000_000_000
    long_hold_ns: int = 9_000_000_000
    #: Further endpoints that are tried, at the most: so many more does a decision name.
    retries: int = 2

    def target_ns(self, input_tokens: int) -> int:
        """The time to first token that a prompt of so many tokens aims at."""
        if input_tokens <= self.long_prompt_tokens:
            return self.ttft_ns
        return max(self.ttft_ns, self.long_ttft_ns)

    def wait_ns(self, input_tokens: int) -> int:
        """How long it may be held; 0 for a class that does not wait."""
        if not self.hold_ns or input_tokens <= self.long_prompt_tokens:
            return self.hold_ns
        return max(self.hold_ns, self.long_hold_ns)
