"""What one pool teaches about its requests: bytes per token, and output length.

Owns two running ratios with forgetting. A better predictor (quantiles by tenant and limit) comes in
`core/predict`; this is what a decision needs from its first day.
"""

from __future__ import annotations

from extproc.core.meter import Meters
from extproc.core.promptcount import CountErrors, PromptCounter

#: Prompt bytes that the configured prior weighs: a dozen short prompts outvote it.
PRIOR_BYTES = 8_192.0
#: Past this many bytes old evidence fades, so that a change of model or language shows.
MEMORY_BYTES = 4_194_304.0
#: Bytes per token are kept within these: a lying count cannot bend a prediction further.
BYTES_PER_TOKEN_MIN, BYTES_PER_TOKEN_MAX = 0.25, 64.0
#: Requests that the configured output length weighs, and past which old ones fade.
PRIOR_REQUESTS, MEMORY_REQUESTS = 8.0, 512.0
#: One answer counts as at most this long: the longest context that engines serve today.
OUTPUT_TOKENS_MAX = 131_072


#: Milliseconds of a replica's time that a token is taken for before anything was measured (an 8B model
#: on one A100 decodes a batch of 16 in about 12 ms, by published step times), and its memory in tokens.
GPU_MS_PER_TOKEN, MEMORY_TOKENS = 0.75, 1_000_000.0
#: A prompt token weighs this much of a generated one: prefill works on many at once.
INPUT_WEIGHT = 0.1


class Calibration:
    """Running estimates of one pool."""

    __slots__ = (
        "_bytes",
        "_gpu_ms",
        "_gpu_tokens",
        "_outputs",
        "_requests",
        "_tokens",
        "counter",
        "errors",
        "meters",
    )

    def __init__(self, *, bytes_per_token: float, output_tokens: float) -> None:
        self._bytes = PRIOR_BYTES
        self._tokens = PRIOR_BYTES / bytes_per_token
        self._gpu_tokens = 1_000.0
        self._gpu_ms = self._gpu_tokens * GPU_MS_PER_TOKEN
        #: What answers had that nobody counted.
        self.meters = Meters()
        #: How far off the estimates of prompts were; who counts them with the model's tokenizer, if anybody.
        self.errors = CountErrors()
        self.counter: PromptCounter | None = None
        self._requests = PRIOR_REQUESTS
        self._outputs = PRIOR_REQUESTS * output_tokens

    @property
    def bytes_per_token(self) -> float:
        """Prompt bytes per prompt token, within BYTES_PER_TOKEN_MIN to BYTES_PER_TOKEN_MAX."""
        return self._bytes / self._tokens

    @property
    def output_tokens(self) -> float:
        """Mean output of one sequence, in tokens."""
        return self._outputs / self._requests

    def saw_prompt(self, prompt_bytes: int, tokens: int) -> None:
        """A prompt of so many bytes was counted as so many tokens by the engine."""
        if prompt_bytes <= 0 or tokens <= 0:
            return
        self.errors.saw(self.predict_input(prompt_bytes), tokens)
        fits = min(max(tokens, prompt_bytes / BYTES_PER_TOKEN_MAX), prompt_bytes / BYTES_PER_TOKEN_MIN)
        self._bytes += prompt_bytes
        self._tokens += fits
        if self._bytes > MEMORY_BYTES:
            keep = MEMORY_BYTES / self._bytes
            self._bytes *= keep
            self._tokens *= keep

    def saw_output(self, tokens: int) -> None:
        """A sequence ended after so many output tokens."""
        if tokens < 0:
            return
        self._outputs += min(tokens, OUTPUT_TOKENS_MAX)
        self._requests += 1.0
        if self._requests > MEMORY_REQUESTS:
            keep = MEMORY_REQUESTS / self._requests
            self._requests *= keep
            self._outputs *= keep

    def saw_gpu(self, gpu_ms: float, input_tokens: int, output_tokens: int) -> None:
        """A request took so much of a replica's time."""
        tokens = INPUT_WEIGHT * input_tokens + output_tokens
        if tokens <= 0 or not 0.0 <= gpu_ms < 1e9:
            return
        self._gpu_ms += gpu_ms
        self._gpu_tokens += tokens
        if self._gpu_tokens > MEMORY_TOKENS:
            keep = MEMORY_TOKENS / self._gpu_tokens
            self._gpu_ms *= keep
            self._gpu_tokens *= keep

    def predict_gpu_ms(self, input_tokens: int, output_tokens: int) -> float:
        """Milliseconds of a replica's time expected of a request: its share, not its duration."""
        tokens = INPUT_WEIGHT * input_tokens + output_tokens
        return tokens * self._gpu_ms / self._gpu_tokens

    def predict_input(self, prompt_bytes: int) -> int:
        """Prompt tokens expected of a text, at least 1."""
        return max(1, round(prompt_bytes * self._tokens / self._bytes))
