"""What ends and first tokens teach: who is healthy, how fast, how long answers are, what is cached where.

Owns the learning of the scheduler's requests; the models are predict/'s, calibrate.py's and latency.py's.
Only whole answers teach lengths: a cut stream's length says nothing of what it would have been.
"""

from __future__ import annotations

from extproc.core.blame import Blame, own_error
from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Fleet, Pool
from extproc.core.forecast import first_token_ms, others, running, scale_of
from extproc.core.kv_heard import KV_TOKENS_ASSUMED, cache_tokens, resized
from extproc.core.ledger import EndedRequest, InFlight
from extproc.core.load import Plan
from extproc.core.outcome import End, Outcome
from extproc.core.predict.errors import Errors
from extproc.core.predict.slots import after_end
from extproc.engines import traits_of

MS_NS = 1_000_000
#: What a site answers to a word that it does not take.
UNTRUSTED_STATUS = "401"
#: A first token tells of the cache where so many tokens should have been cached, and their prefill would have
#: taken this share of what was predicted.
CACHE_JUDGED_MIN, SPARED_SHARE_MIN = 128, 0.3
#: From so many observations of its speed on, an endpoint's late first tokens tell of waiting.
SPEED_KNOWN = 1
#: How fast a cache is taken for smaller, and for larger again.
CACHE_SHRINK, CACHE_GROW = 0.1, 0.01
#: A decode of fewer tokens says more of its first than of a step.
DECODE_TOKENS_MIN = 8
#: A step that others' prefill shared is taken to be this much of the time between tokens at most.
INTERFERENCE_MAX = 0.7
#: A first token in time may still have waited for an end, by this share of its own time and so long.
START_SHARE, START_MS = 0.3, 5.0


class Feedback:
    """Learns for one fleet; `ttft` and `completion` are the errors of what was predicted at dispatch."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.ttft = Errors()
        self.completion = Errors()
        self.blame = Blame()

    def slot(self, entry: InFlight, *, now_ns: int) -> bool:
        """A first token was heard of, in time or not; true where it waited for another request's end.

        Where several requests decode for one, or it was tried elsewhere before, nothing can be said.
        """
        endpoint, job = entry.endpoint, entry.job
        endpoint.speed.model.admission.heard = True
        if not job.silent:
            return False
        load = endpoint.load
        load.heard(job)
        taken, waited = endpoint.load_permits - load.silent, False
        if entry.moved or job.permits != 1:
            return endpoint.slots.saw(taken, waited=False, now_ns=now_ns)
        observed_ms = (now_ns - job.placed_ns) / MS_NS
        if load.left_ns >= job.placed_ns:
            since_ms = (now_ns - load.left_ns) / MS_NS
            waited = after_end(
                observed_ms, first_token_ms(entry.endpoint, entry.job), since_ms, job.plan.prefill_ms
            )
        side_by_side = endpoint.admission.side_by_side
        if side_by_side and job.plan.sure:
            # One that is in time may have waited a little as well.
            own_ms = scale_of(entry.endpoint, entry.job) * (job.plan.ttft_ms - job.plan.wait_ms)
            start_ms = own_ms if waited else (1.0 - START_SHARE) * own_ms - START_MS
            beside = load.beside(job, int(now_ns - start_ms * MS_NS), at_end=waited)
            taken = max(taken, beside + endpoint.load_permits - load.taken + 1)
        return endpoint.slots.saw(taken, waited=waited, now_ns=now_ns, about=side_by_side)

    def first_token(self, entry: InFlight, *, now_ns: int, waited: bool = False) -> None:
        """The first token of a request in flight was seen now; `waited`: for another's end (`slot`)."""
        entry.timed = True
        if not entry.adopted and not waited:
            self._ttft(entry, (now_ns - entry.job.placed_ns) / MS_NS, now_ns)
        pool = self.fleet.pools.get(entry.reservation.pool)
        if pool is not None and traits_of(pool.engine).caches_at_prefill:
            _cached(pool, entry)

    def ended(self, outcome: Outcome, ended: EndedRequest, *, now_ns: int) -> None:
        """A request has ended."""
        reservation, entry = outcome.reservation, ended.entry
        pool = self.fleet.pools.get(reservation.pool)
        if pool is None or outcome.end is not End.OK or not reservation.permits:
            return
        if outcome.served_in != reservation.pool:
            # Another pool's replica answered: what was expected of this one is undone, and nothing is learnt.
            if entry is not None and not entry.adopted and entry.endpoint.pool == reservation.pool:
                moved(entry, entry.endpoint)
            return
        pool.calibration.meters.saw(outcome)
        if outcome.prompt_tokens is not None:
            pool.calibration.saw_prompt(reservation.prompt_bytes, outcome.prompt_tokens)
        if outcome.output_tokens is not None and reservation.max_new_tokens != 0:
            each = outcome.output_tokens // max(1, reservation.permits)
            pool.calibration.saw_output(each)
            pool.lengths.saw(reservation.tenant, reservation.model, reservation.max_new_tokens, each)
        if entry is None or entry.adopted:
            return
        serving = self.fleet.endpoint(reservation.pool, outcome.served_by)
        if serving is not None and serving is not entry.endpoint:
            # It was tried elsewhere in vain, and nobody said so before: nothing of it was measured there.
            moved(entry, entry.endpoint)
            _cached_elsewhere(pool, entry, serving)
            return
        heard = entry.heard_first
        if reservation.stream and entry.job.silent:
            entry.endpoint.speed.model.admission.missing += 1
        _told(pool, entry, outcome)
        if not traits_of(pool.engine).caches_at_prefill or not heard:
            _cached(pool, entry)
        if entry.moved:
            return
        if ended.decoded is not None:
            entry.endpoint.slots.ended(ended.decoded.elapsed_ms + entry.job.plan.prefill_ms)
        if outcome.ttft_ns is not None and not entry.timed:
            # From the request's start, the hold included; what was held is known.
            self._ttft(entry, outcome.ttft_ns / MS_NS - reservation.held_ms, now_ns)
        took_ms = (now_ns - entry.job.placed_ns) / MS_NS
        expected = reservation.ttft_ms + reservation.tpot_ms * entry.job.plan.output_tokens
        if took_ms > 0 and expected > 0:
            self.completion.saw(expected, took_ms)
        self._decode(outcome, ended, now_ns)

    def judge(self, outcome: Outcome, *, now_ns: int) -> None:
        """Passive health: who answered is trusted, who made Envoy go elsewhere is suspect."""
        fleet, pool, chosen = self.fleet, outcome.reservation.pool, outcome.reservation.address
        served = fleet.endpoint(pool, outcome.served_by)
        first = fleet.endpoint(pool, chosen)
        well = outcome.end in (End.OK, End.REFUSED) and not outcome.refused and not outcome.impossible
        if served is not None and well:
            served.succeeded()
            self.blame.answered(served.address)
            fleet.answered(served, outcome, now_ns=now_ns, failed=False)
        retried_elsewhere = outcome.attempts > 1 and outcome.served_by != chosen
        failed = outcome.end is End.ERROR or outcome.impossible
        failed_here = failed and outcome.served_by in ("", chosen)
        if failed and served is not None and served is not first:
            served.failed(now_ns, refused=outcome.impossible)
            fleet.answered(served, outcome, now_ns=now_ns, failed=True)
        if first is not None and (retried_elsewhere or failed_here):
            if _untrusted(fleet, outcome):
                return
            tenant = outcome.reservation.tenant
            if own_error(outcome) and not self.blame.failed(pool, chosen, tenant, now_ns=now_ns):
                return
            first.failed(now_ns, refused=outcome.impossible and not retried_elsewhere)
            fleet.answered(first, outcome, now_ns=now_ns, failed=True)

    def _ttft(self, entry: InFlight, observed_ms: float, now_ns: int) -> None:
        if observed_ms <= 0.0 or entry.moved:
            return
        endpoint, plan = entry.endpoint, entry.job.plan
        endpoint.latency.ttft.saw(observed_ms, now_ns=now_ns)
        endpoint.admission.answers()
        if plan.ttft_ms <= 0.0:
            return
        self.ttft.saw(plan.ttft_ms, observed_ms)
        if plan.cached_tokens >= CACHE_JUDGED_MIN and self._missed(entry, observed_ms):
            # Its time says that the cache did not hold what we thought, and so nothing of the speed.
            return
        job = entry.job
        if not plan.sure:
            self._found(entry, observed_ms)
            return
        if plan.alone:
            endpoint.speed.saw_prefill(plan.uncached_tokens, plan.cached_tokens, observed_ms)
            return
        if job.ahead:
            _waited(entry, observed_ms)
        if self._joined(entry, observed_ms):
            return
        scale = scale_of(entry.endpoint, entry.job)
        predicted_ms = scale * first_token_ms(entry.endpoint, entry.job)
        if job.ahead_ms and not (job.ahead and endpoint.admission.known(job.ahead)):
            # It waits not at all, or for all of them: what is within that tells nothing.
            least_ms = scale * (plan.ttft_ms - plan.wait_ms)
            predicted_ms = min(max(observed_ms, least_ms), least_ms + scale * job.ahead_ms)
            if predicted_ms == observed_ms:
                return
        endpoint.speed.saw_first_token(predicted_ms, observed_ms)
        if plan.next:
            batch, context_tokens = running(endpoint)
            endpoint.speed.saw_prefill_among(
                plan.uncached_tokens,
                plan.cached_tokens,
                observed_ms,
                beside_ms=plan.ttft_ms - plan.prefill_ms,
                batch=batch,
                context_tokens=context_tokens,
            )

    def _missed(self, entry: InFlight, observed_ms: float) -> bool:
        """Whether a first token took as long as if nothing had been cached; what is held is taken for less.

        For engines that do not say what they found cached (TGI, and others without the option for it): where
        prompts that should have been cached come late, the index keeps a tenth less of that endpoint's than
        it has, and a hundredth more with each that comes in time. What usage or events tell goes before it
        (cached.py).
        """
        endpoint, plan = entry.endpoint, entry.job.plan
        pool = self.fleet.pools.get(entry.reservation.pool)
        spared_ms = endpoint.speed.prefill_ms(plan.uncached_tokens + plan.cached_tokens) - plan.prefill_ms
        expected_ms = first_token_ms(entry.endpoint, entry.job)
        if pool is None or spared_ms <= SPARED_SHARE_MIN * expected_ms:
            return False
        missed = observed_ms > expected_ms + spared_ms / 2.0
        delayed = missed and self._delayed(entry, observed_ms, spared_ms)
        if delayed or endpoint.cache.told or endpoint.cache.events:
            return missed
        each = plan.block_tokens
        capacity = float(cache_tokens(endpoint))
        if missed:
            capacity = min(capacity, pool.prefixes.blocks(endpoint.address) * each) * (1.0 - CACHE_SHRINK)
            endpoint.cache.corrections["late"] += 1
        else:
            capacity = min(float(endpoint.kv_tokens or KV_TOKENS_ASSUMED), capacity * (1.0 + CACHE_GROW))
        resized(pool.prefixes, endpoint, capacity, each)
        return missed

    def _found(self, entry: InFlight, observed_ms: float) -> None:
        """A first token too early for what was taken to have left the cache: it is larger by that, at least.

        Nothing else makes a prompt early, so one counts at once, where a hit of what was predicted gives
        back a hundredth. By a cache that is taken for too small, homes are left for nothing.
        """
        endpoint, plan = entry.endpoint, entry.job.plan
        cache, more = endpoint.cache, plan.given_tokens - plan.cached_tokens
        pool = self.fleet.pools.get(entry.reservation.pool)
        if pool is None or more < CACHE_JUDGED_MIN or cache.told or cache.events:
            return
        least_ms = plan.ttft_ms - plan.wait_ms
        uncached = max(0, plan.uncached_tokens - more)
        spared_ms = plan.prefill_ms - endpoint.speed.prefill_ms(uncached, plan.given_tokens)
        if spared_ms <= SPARED_SHARE_MIN * least_ms or observed_ms > least_ms - spared_ms / 2.0:
            return
        held = pool.prefixes.blocks(endpoint.address) * plan.block_tokens
        capacity = float(cache_tokens(endpoint))
        cache.corrections["early"] += 1
        resized(pool.prefixes, endpoint, max(capacity, min(capacity, held) + more), plan.block_tokens)

    def _delayed(self, entry: InFlight, observed_ms: float, spared_ms: float) -> bool:
        """Whether others may have delayed its first token by more than is known.

        What all of those ahead would explain says nothing of the cache, whatever is believed of how the
        engine admits: that belief, the speed and the cache's size are learnt of the same first tokens, and
        in a pool's first seconds each is wrong. (Simulated, engines that take one prompt at a time: of 186
        first tokens as late as a miss 180 had found all of their prefix. One that counts takes the cache for
        smaller than the little that is in it yet.)
        """
        endpoint, job, plan = entry.endpoint, entry.job, entry.job.plan
        if job.ahead_ms and not (job.ahead and endpoint.admission.known(job.ahead)):
            return True
        if observed_ms <= plan.ttft_ms - plan.wait_ms + job.ahead_ms + spared_ms / 2.0:
            return True
        return self._joined(entry, observed_ms)

    def _joined(self, entry: InFlight, observed_ms: float) -> bool:
        """Whether somebody came after it who may have been prefilled with it: then its time says nothing."""
        job, endpoint = entry.job, entry.endpoint
        if endpoint.admission.side_by_side:
            return False
        return endpoint.load.joined(job, job.placed_ns + int(observed_ms * MS_NS))

    def _decode(self, outcome: Outcome, ended: EndedRequest, now_ns: int) -> None:
        entry, decoded, tokens = ended.entry, ended.decoded, outcome.output_tokens
        if entry is None or decoded is None or tokens is None or not entry.heard_first:
            return
        if tokens < DECODE_TOKENS_MIN or entry.reservation.permits != 1:
            return
        tpot_ms = decoded.elapsed_ms / (tokens - 1)
        entry.endpoint.latency.tpot.saw(tpot_ms, now_ns=now_ns)
        # What others run there is known as it is now, not as it was in the mean: better than nothing.
        streams, held_tokens = others(entry.endpoint)
        batch, context_tokens = decoded.batch + streams, decoded.context_tokens + held_tokens
        endpoint = entry.endpoint
        steps_ms = (tokens - 1) * endpoint.speed.step_ms(batch, context_tokens)
        endpoint.admission.saw_decode(decoded.elapsed_ms, steps_ms, decoded.interference_ms)
        known = endpoint.admission.stall_known
        stalled_ms = (endpoint.admission.stall if known else 1.0) * decoded.interference_ms
        if stalled_ms >= INTERFERENCE_MAX * decoded.elapsed_ms:
            return
        taken_ms = decoded.elapsed_ms - stalled_ms
        if not known and decoded.interference_ms > 0.0:
            # Prefills beside it held it up not at all, or wholly: what is within that tells nothing.
            if taken_ms <= steps_ms <= decoded.elapsed_ms:
                return
            taken_ms = min(max(steps_ms, taken_ms), decoded.elapsed_ms)
        endpoint.speed.saw_decode(batch, context_tokens, taken_ms / (tokens - 1))


def _cached(pool: Pool, entry: InFlight) -> None:
    """The endpoint holds this prompt from now on."""
    prefix, each = entry.job.plan.prefix, entry.job.plan.block_tokens
    if prefix:
        capacity = max(1, int(cache_tokens(entry.endpoint) / each))
        pool.prefixes.insert(entry.endpoint.address, prefix, capacity_blocks=capacity)


def _cached_elsewhere(pool: Pool, entry: InFlight, serving: Endpoint) -> None:
    """A retry's answer, known by its end alone: who served holds the prompt, and who failed no more of it."""
    plan = entry.job.plan
    if not plan.prefix:
        return
    if entry.heard_first and traits_of(pool.engine).caches_at_prefill:
        held = round(plan.cached_tokens / plan.block_tokens)
        pool.prefixes.remove(entry.endpoint.address, plan.prefix[held:])
    capacity = max(1, int(cache_tokens(serving) / plan.block_tokens))
    pool.prefixes.insert(serving.address, plan.prefix, capacity_blocks=capacity)


def _told(pool: Pool, entry: InFlight, outcome: Outcome) -> None:
    """A request's end: what its engine says that it found cached corrects what is held of that endpoint."""
    plan, endpoint = entry.job.plan, entry.endpoint
    cache, cached = endpoint.cache, outcome.cached_tokens
    if entry.moved or outcome.reservation.permits != 1 or not plan.prefix:
        return
    prompt = outcome.prompt_tokens if outcome.prompt_tokens is not None else outcome.reservation.input_tokens
    if cached is None or cached > prompt:
        return
    held = pool.prefixes.blocks(endpoint.address) * plan.block_tokens
    capacity = cache.usage(plan, cached, float(cache_tokens(endpoint)), held)
    if not cache.events:
        resized(pool.prefixes, endpoint, capacity, plan.block_tokens)


def _waited(entry: InFlight, observed_ms: float) -> None:
    """What a first token says of how its engine admits.

    By what is known of its speed now, which may be more than when it was placed.
    """
    job, plan, endpoint = entry.job, entry.job.plan, entry.endpoint
    speed = endpoint.speed
    if plan.prefill_ms <= 0.0:
        return
    scale = scale_of(entry.endpoint, entry.job)
    own_ms = scale * (plan.ttft_ms - plan.wait_ms)
    waited_ms = observed_ms - own_ms
    # A speed that nobody knows yet looks like waiting.
    if speed.observations >= SPEED_KNOWN or waited_ms <= 0.0:
        endpoint.admission.saw(job.ahead, scale * job.ahead_ms, own_ms, waited_ms)


def late(entry: InFlight, *, now_ns: int) -> None:
    """Its first token should long have come: that it takes at least so long is known before it is there.

    Not where nobody hears of first tokens: then nothing is late.
    """
    speed, plan = entry.endpoint.speed, entry.job.plan
    if entry.reservation.stream and not entry.moved and speed.model.admission.heard:
        before = speed.factor
        speed.saw_first_token(
            scale_of(entry.endpoint, entry.job) * plan.latest_ms, (now_ns - entry.job.placed_ns) / MS_NS
        )
        entry.late = speed.factor / before


def _untrusted(fleet: Fleet, outcome: Outcome) -> bool:
    """Whether another site did not take the word for a request: that is about its tenant, or our keys and
    clock, of which the link's own questions tell. The site is no worse for others by it."""
    pool = fleet.pools.get(outcome.reservation.pool)
    refused = outcome.key_refused or outcome.failed_there == UNTRUSTED_STATUS
    return refused and pool is not None and bool(pool.site)


def moved(entry: InFlight, failed: Endpoint) -> None:
    """A retry took it elsewhere: that its first token did not come says nothing of how fast `failed` is."""
    failed.speed.takes_back(entry.late)
    entry.late = 1.0


def coming(pool: Pool, endpoint: Endpoint, plan: Plan) -> None:
    """An endpoint was given this prompt, and will hold it in the end."""
    if plan.prefix:
        # Not the learnt capacity: where a prompt went last it is likeliest to be cached again.
        capacity = max(1, int((endpoint.kv_tokens or KV_TOKENS_ASSUMED) / plan.block_tokens))
        pool.coming.insert(endpoint.address, plan.prefix, capacity_blocks=capacity)
