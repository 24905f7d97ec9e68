"""How fast a pool's engines are: one learned timing for the hardware, one factor for each endpoint.

Owns the calibration from settled requests and agents' rates. Knows nothing of queues: it is told times
of work that nothing else delayed, and whoever predicts a wait adds it up.

Model and factors share one freedom: a model twice as slow with factors halved predicts the same. It is
settled by keeping the typical factor, the lower median of the endpoints that have served, at 1. A lone
straggler so keeps its factor, and a pool that is slower than its prior moves the model.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from math import exp, log

from extproc.core.predict.admission import AdmissionModel
from extproc.core.predict.errors import Errors
from extproc.core.predict.prior import Prior
from extproc.core.predict.rls import Affine
from extproc.core.predict.slots import SlotsModel
from extproc.core.predict.timing import TYPICAL_BATCH, TYPICAL_CONTEXT_TOKENS

#: An endpoint is at most so much faster or slower than its pool.
FACTOR_MIN, FACTOR_MAX = 0.3, 10.0
#: The factor moves by at least this share of an error, and with the n-th observation (from 0) by 1/(n +
#: FIRST_WEIGHT): one measured prefill says more than a card's name.
GAIN_MIN, FIRST_WEIGHT = 0.05, 1.25
#: One error counts as at most this logarithm in a factor; of the first few observations as more.
ERROR_CLIP, FIRST_ERROR_CLIP, FIRST_OBSERVATIONS = 1.0, 2.0, 3
#: So many errors of this logarithm in a row, all one way, are a change and no noise: the factor follows at
#: once, until one is below `FOLLOWED`.
SURPRISE, SURPRISES, SURPRISED_GAIN, FOLLOWED = 0.4, 3, 0.4, 0.15
#: An endpoint with fewer observations does not say what is typical.
TYPICAL_OBSERVATIONS_MIN = 3
#: The typical factor is found anew after so many observations, or one for each endpoint.
SETTLE_EVERY = 4
#: A prefill among running streams teaches where, by the prior, it takes so many steps: what was learnt must
#: not choose what is learnt from. It is taken for at least this share of its time to first token.
PREFILL_STEPS_MIN, OWN_SHARE_MIN = 2.0, 0.25
#: Times and counts beyond these are not believed at all.
OBSERVED_MS_MAX, TOKENS_MAX, BATCH_MAX = 1e8, 1e8, 1e6
#: Agents' rates move a factor by this share of their error, less as requests settle, and in all by no
#: more than this logarithm (a factor of two).
RATES_GAIN, RATES_SETTLED, RATES_TOTAL_MAX = 0.05, 10.0, 0.7
#: Tokens that one running sequence holds, before any was seen.
CONTEXT_TOKENS_PER_SEQUENCE = 1_000.0
#: The prompt at which, with a typical step, a move of the whole model is measured.
_TYPICAL_PROMPT = 1_000.0
#: Own observations, and the pool's (four count as one), that make half of the confidence.
CONFIDENT_OBSERVATIONS, CONFIDENT_POOL_MAX = 10.0, 10.0
#: Relative error that is assumed before any was seen: of a known GPU, of an unknown one.
ERROR_KNOWN, ERROR_UNKNOWN = 0.35, 0.7
#: A median relative error of this halves the confidence.
ERROR_HALF = 0.25


class SpeedModel:
    """The timing of one pool on one hardware, learned from the prior onwards."""

    __slots__ = (
        "_decode",
        "_moves",
        "_prefill",
        "_speeds",
        "_unsettled",
        "admission",
        "context_per_sequence",
        "prior",
        "samples",
        "slots",
        "timing",
    )

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        #: How such engines admit.
        self.admission = AdmissionModel()
        self.slots = SlotsModel()
        #: Changed in place: whoever holds it sees what was learned.
        self.timing = replace(prior.timing)
        #: Settled observations, agents' rates not counted.
        self.samples = 0
        at = prior.timing
        self._decode = Affine(at.decode_base_ms, at.decode_per_sequence_ms, at.decode_per_context_token_ms)
        self._prefill = Affine(at.prefill_base_ms, at.prefill_per_token_ms, at.prefill_per_square_ms)
        self.context_per_sequence = CONTEXT_TOKENS_PER_SEQUENCE
        self._speeds: list[weakref.ref[Speed]] = []
        self._unsettled = self._moves = 0

    def saw_prefill(self, tokens: float, cached: float, observed_ms: float) -> None:
        """A prefill of `tokens` behind `cached` ones took so long with nothing else in the way."""
        if not (0.0 <= tokens <= TOKENS_MAX and 0.0 <= cached <= TOKENS_MAX and _believed(observed_ms)):
            return
        self.samples += 1
        self._prefill.saw(tokens, tokens * (tokens + cached + cached), observed_ms)
        self._publish_prefill()

    def saw_decode(self, batch: float, context_tokens: float, observed_step_ms: float) -> None:
        """A step of `batch` sequences holding `context_tokens` together took so long."""
        if not (
            0.0 <= batch <= BATCH_MAX and 0.0 <= context_tokens <= TOKENS_MAX and _believed(observed_step_ms)
        ):
            return
        self.samples += 1
        if batch >= 1.0:
            self.context_per_sequence += 0.05 * (context_tokens / batch - self.context_per_sequence)
        self._decode.saw(batch, context_tokens, observed_step_ms)
        self._publish_decode()

    def _publish_decode(self) -> None:
        at = self.timing
        (
            at.decode_base_ms,
            at.decode_per_sequence_ms,
            at.decode_per_context_token_ms,
        ) = self._decode.coefficients

    def _publish_prefill(self) -> None:
        at = self.timing
        (
            at.prefill_base_ms,
            at.prefill_per_token_ms,
            at.prefill_per_square_ms,
        ) = self._prefill.coefficients

    def join(self, speed: Speed) -> None:
        """Counts an endpoint among those whose typical factor is 1, for as long as it lives."""
        self._speeds.append(weakref.ref(speed))

    def settle(self) -> None:
        """Now and then moves what the endpoints' factors share into the model; predictions stay."""
        self._unsettled += 1
        self._moves += 1
        if self._unsettled < SETTLE_EVERY or self._unsettled < len(self._speeds):
            # The first ones count at once, and ever more together.
            if not self._moves & (self._moves - 1):
                self.presume()
            return
        self._unsettled = 0
        self._typical()
        self.presume()

    def presume(self) -> None:
        """Who has shown nothing yet goes by the others: the prior was wrong of it as well."""
        speeds = self._living()
        if seen := sorted(speed.factor for speed in speeds if speed.observations):
            for speed in speeds:
                if not speed.observations:
                    factor = seen[(len(seen) - 1) // 2] * exp(speed.rates)
                    speed.factor = min(max(factor, FACTOR_MIN), FACTOR_MAX)

    def _living(self) -> list[Speed]:
        speeds = [speed for held in self._speeds if (speed := held()) is not None]
        if len(speeds) < len(self._speeds):
            self._speeds = [weakref.ref(speed) for speed in speeds]
        return speeds

    def _typical(self) -> None:
        speeds = self._living()
        factors = sorted(speed.factor for speed in speeds if speed.observations >= TYPICAL_OBSERVATIONS_MIN)
        if not factors:
            return
        before = self._typical_ms()
        if before <= 0.0:
            return
        typical = factors[(len(factors) - 1) // 2]
        self._decode.scale(typical)
        self._prefill.scale(typical)
        self._publish_decode()
        self._publish_prefill()
        # At a coefficient's bound the model moves by less than it was asked for.
        moved = self._typical_ms() / before
        for speed in speeds:
            speed.factor = min(max(speed.factor / moved, FACTOR_MIN), FACTOR_MAX)

    def _typical_ms(self) -> float:
        timing = self.timing
        return timing.step_ms(TYPICAL_BATCH, TYPICAL_CONTEXT_TOKENS) + timing.prefill_ms(_TYPICAL_PROMPT)


class Speed:
    """The speed of one endpoint: its pool's model times a factor of its own."""

    __slots__ = ("__weakref__", "_run", "_timing", "errors", "factor", "model", "observations", "rates")

    def __init__(self, model: SpeedModel) -> None:
        self.model = model
        self._timing = model.timing
        #: Within FACTOR_MIN to FACTOR_MAX; 3 is three times slower than the pool's typical endpoint.
        self.factor = 1.0
        #: Errors of the predictions that this endpoint's observations met, first tokens included.
        self.errors = Errors()
        #: Observations that moved the factor.
        self.observations = 0
        #: What its agent's rates have moved it by, a logarithm; large errors in a row, slow ones positive.
        self.rates = 0.0
        self._run = 0
        model.join(self)

    def prefill_ms(self, tokens: float, cached: float = 0.0) -> float:
        """Milliseconds to prefill `tokens` uncached tokens behind `cached` ones here; below 0 counts as 0."""
        return self.factor * self._timing.prefill_ms(tokens, cached)

    def step_ms(self, batch: float, context_tokens: float) -> float:
        """Milliseconds of a decode step here, of `batch` sequences holding `context_tokens` together."""
        return self.factor * self._timing.step_ms(batch, context_tokens)

    def saw_first_token(self, predicted_ms: float, observed_ms: float) -> None:
        """A first token that was predicted after so long, waits included, came after so long."""
        self._move(predicted_ms, observed_ms)

    def takes_back(self, moved_by: float) -> None:
        """What multiplied the factor by `moved_by` was not measured here."""
        self.factor = min(max(self.factor / moved_by, FACTOR_MIN), FACTOR_MAX)
        if moved_by != 1.0:
            self.model.presume()

    def saw_prefill(self, tokens: float, cached: float, observed_ms: float) -> None:
        """A prefill here took so long with nothing else in the way: teaches factor and model."""
        if self._move(self.prefill_ms(tokens, cached), observed_ms) and self._teaches:
            self.model.saw_prefill(tokens, cached, observed_ms / self.factor)

    def saw_prefill_among(
        self,
        tokens: float,
        cached: float,
        observed_ms: float,
        *,
        beside_ms: float,
        batch: float,
        context_tokens: float,
    ) -> None:
        """A first token came after so long, all but `beside_ms` of it its own prefill: teaches the model.

        `batch` sequences with `context_tokens` together ran meanwhile.

        Under load nothing is ever prefilled alone. Learnt from decode alone, prefill and step cannot be told
        apart, and either may swallow the other (simulated, conversation at 1.1, one seed in three: a step of
        153 ms for 20, and 83 % attainment for 90).
        """
        prior = self.model.prior.timing
        step_ms = prior.step_ms(batch, context_tokens)
        if not self._teaches or prior.prefill_ms(tokens, cached) < PREFILL_STEPS_MIN * step_ms:
            return
        own_ms = max(observed_ms - beside_ms, OWN_SHARE_MIN * observed_ms)
        if _believed(own_ms):
            self.model.saw_prefill(tokens, cached, own_ms / self.factor)

    def saw_decode(self, batch: float, context_tokens: float, observed_step_ms: float) -> None:
        """A decode step here took so long: teaches factor and model."""
        if self._move(self.step_ms(batch, context_tokens), observed_step_ms) and self._teaches:
            self.model.saw_decode(batch, context_tokens, observed_step_ms / self.factor)

    def saw_rates(
        self, *, prefill_tokens_per_s: float | None, decode_tokens_per_s: float | None, batch: float
    ) -> None:
        """Its agent read these rates while `batch` sequences ran: weak evidence, for this endpoint alone.

        `batch` over the decode rate is the time of a step, stalls included. A prefill rate only bounds:
        an engine that had little to prefill shows a low one, so it can make it faster, not slower. An agent
        that lies moves nobody else, and its own replica by no more than `RATES_TOTAL_MAX`.
        """
        errors = []
        if decode_tokens_per_s is not None and 1.0 <= batch <= BATCH_MAX and decode_tokens_per_s > 0.0:
            observed = 1_000.0 * batch / decode_tokens_per_s
            predicted = self.step_ms(batch, batch * self.model.context_per_sequence)
            if _believed(observed) and predicted > 0.0:
                errors.append(log(observed / predicted))
        if prefill_tokens_per_s is not None and prefill_tokens_per_s > 0.0:
            observed = 1_000.0 / prefill_tokens_per_s
            predicted = self.factor * self._timing.prefill_per_token_ms
            if 1e-9 < observed < predicted:
                errors.append(log(observed / predicted))
        gain = RATES_GAIN / (1.0 + self.observations / RATES_SETTLED)
        for error in errors:
            to = _clipped(self.rates + gain * _clipped(error, ERROR_CLIP / 2.0), RATES_TOTAL_MAX)
            self.factor = min(max(self.factor * exp(to - self.rates), FACTOR_MIN), FACTOR_MAX)
            self.rates = to

    @property
    def _teaches(self) -> bool:
        """Whether the factor has room: what it cannot hold must not spill into the pool's model."""
        return FACTOR_MIN < self.factor < FACTOR_MAX

    @property
    def confidence(self) -> float:
        """How far a prediction may be trusted, 0 (a guess) to 1: evidence times recent accuracy."""
        evidence = self.observations + min(self.model.samples / 4.0, CONFIDENT_POOL_MAX)
        error = self.errors.median
        if error is None:
            error = ERROR_KNOWN if self.model.prior.known else ERROR_UNKNOWN
        return evidence / (evidence + CONFIDENT_OBSERVATIONS) * ERROR_HALF / (ERROR_HALF + error)

    def _move(self, predicted_ms: float, observed_ms: float) -> bool:
        """Moves the factor by a share of the error; False for what is not believed."""
        if not (_believed(observed_ms) and _believed(predicted_ms)):
            return False
        self.errors.saw(predicted_ms, observed_ms)
        gain = max(GAIN_MIN, 1.0 / (self.observations + FIRST_WEIGHT))
        error = log(observed_ms / predicted_ms)
        if abs(error) < (SURPRISE if abs(self._run) < SURPRISES else FOLLOWED):
            self._run = 0
        else:
            self._run = max(self._run, 0) + 1 if error > 0.0 else min(self._run, 0) - 1
        if abs(self._run) >= SURPRISES:
            gain = max(gain, SURPRISED_GAIN)
        self.observations += 1
        clip = ERROR_CLIP if self.observations > FIRST_OBSERVATIONS else FIRST_ERROR_CLIP
        factor = self.factor * exp(gain * _clipped(error, clip))
        self.factor = min(max(factor, FACTOR_MIN), FACTOR_MAX)
        self.model.settle()
        return True


def _believed(observed_ms: float) -> bool:
    """Positive, finite and of this world; NaN compares false."""
    return 1e-6 < observed_ms < OBSERVED_MS_MAX


def _clipped(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
