"""Every metric of the service: its name, kind, labels and meaning, in one table.

What is exported (samples.py) and what is documented (docs/metrics.md) both follow it; a test holds them
together. Knows nothing of how a figure comes about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: What every name begins with.
PREFIX = "steersman_"
#: Upper bounds of the histograms' buckets, in seconds; each has one more, without a bound.
TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0)
TPOT_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)
HOLD_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0)
DECISION_S = (50e-6, 1e-4, 2e-4, 3e-4, 5e-4, 75e-5, 1e-3, 15e-4, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.05, 0.1)
LAG_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. `name` is without the prefix and, of a counter, with its `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()
    #: Another where other programs look for the name.
    prefix: str = PREFIX

    @property
    def full_name(self) -> str:
        """As it is exported."""
        return self.prefix + self.name


AT_POOL, AT_GPU = ("pool", "endpoint"), ("endpoint", "gpu")
#: What the workload-variant autoscaler calls its gauges, and their labels.
WVA, AT_VARIANT = "wva_", ("variant_name", "namespace", "accelerator_type")

#: By what they are of, in the order in which they are shown.
GROUPS: Mapping[str, tuple[Spec, ...]] = {
    "Traffic": (
        Spec(
            "requests_total",
            "counter",
            ("tenant", "pool", "class", "outcome"),
            "Requests that reached an endpoint and have ended: ok, refused (the engine's 4xx), "
            "error, or client_gone; also client_gone where the client left while it was held.",
        ),
        Spec(
            "refusals_total",
            "counter",
            ("tenant", "code"),
            "Requests that the gateway itself turned away, by the error's code; tenant is (none) "
            "where nobody proved who asks.",
        ),
        Spec(
            "tokens_total",
            "counter",
            ("tenant", "pool", "direction"),
            "Tokens charged at requests' ends, input or output: the engine's counts, estimates "
            "where it gives none.",
        ),
        Spec(
            "cost_total",
            "counter",
            ("tenant", "pool"),
            "What those tokens cost by the pool's price, in the price's currency.",
        ),
        Spec(
            "gpu_seconds_total",
            "counter",
            ("tenant", "pool"),
            "Replica time charged: a request's duration over the requests that shared its replica.",
        ),
        Spec(
            "slo_requests_total",
            "counter",
            ("tenant", "class", "met"),
            "Requests that were within their class's targets of first and further tokens (yes) or "
            "not (no); shed and failed ones, and clients that gave up on a late first token, are "
            "no; spent quotas, clients' mistakes and clients that left before it was due are "
            "neither.",
        ),
        Spec(
            "ttft_seconds",
            "histogram",
            ("pool", "class"),
            "Request start to first token, the hold included, of streams as Envoy saw them.",
            TTFT_S,
        ),
        Spec(
            "tpot_seconds",
            "histogram",
            ("pool", "class"),
            "Time between further tokens, (end - first) / (n - 1), of streams that ended well and "
            "whose tokens were counted (OpenAI clients ask for it: stream_options.include_usage).",
            TPOT_S,
        ),
        Spec(
            "request_seconds",
            "histogram",
            ("pool", "class"),
            "Request start to end, of requests that ended well.",
            REQUEST_S,
        ),
        Spec(
            "hold_seconds",
            "histogram",
            ("pool", "class"),
            "Time in the gateway's queue until a request was placed or shed, or its client left; "
            "about 0 for one that did not wait.",
            HOLD_S,
        ),
        Spec(
            "decisions_total",
            "counter",
            ("pool", "strategy", "degraded"),
            "Requests sent to an endpoint; degraded is yes where the choice had less to go by than "
            "it should.",
        ),
    ),
    "Tenants and queues": (
        Spec("held", "gauge", ("pool", "class"), "Requests that wait in the gateway's queue."),
        Spec("in_flight", "gauge", ("pool",), "Requests at the pool's endpoints by this service."),
        Spec("tenant_in_flight", "gauge", ("tenant",), "The tenant's requests at endpoints."),
        Spec("tenant_held", "gauge", ("tenant",), "The tenant's requests that wait in the queue."),
        Spec(
            "quota_used_ratio",
            "gauge",
            ("tenant", "limit"),
            "Used over allowed of the tenant's own limits; above 1 where capacity was lent, or "
            "more was used than predicted.",
        ),
    ),
    "Spill-over": (
        Spec(
            "spilled_total",
            "counter",
            ("pool", "to", "why"),
            "Requests of a pool that went to another one: load, attainment, or unavailable (no replica of "
            "its own was ready).",
        ),
        Spec(
            "spill_spent",
            "gauge",
            ("pool",),
            "What they cost in the last hour, those that run with the most that they can cost.",
        ),
    ),
    "Sites": (
        Spec("site_up", "gauge", ("pool",), "Whether the other site answered the last question."),
        Spec("site_round_trip_seconds", "gauge", ("pool",), "The way there and back."),
        Spec(
            "site_choices_total", "counter", ("reason",), "Requests of two sites, by why which serves them."
        ),
        Spec("client_places_total", "counter", ("place",), "Requests by where their clients are."),
    ),
    "LoRA adapters": (
        Spec(
            "adapter_events_total",
            "counter",
            ("pool", "adapter", "what"),
            "What became of an adapter: requests placed for it, loads, drops for another.",
        ),
        Spec("adapter_replicas", "gauge", ("pool", "adapter"), "Replicas that have it loaded."),
        Spec(
            "adapter_calls_total",
            "counter",
            ("pool", "call", "result"),
            "Calls to engines (load, unload, look), and what came of them (ok, failed).",
        ),
    ),
    "Cache": (
        Spec(
            "cache_requests_total",
            "counter",
            ("tenant", "outcome"),
            "Requests of tenants that have a cache: hit, miss, away (the store cannot be asked), late (it "
            "took longer than its budget), poisoned (what it gave was not what was kept), refresh, joined (a "
            "miss that got the answer of an equal one), semantic (of one in other words), waited (in vain); "
            "else why it was not looked up: sampled, tools, several, outside (an image by URL), state, "
            "large, uncanonical.",
        ),
        Spec(
            "cache_fills_total",
            "counter",
            ("outcome",),
            "Answers that came for the cache: kept, or why not (error, empty, refused, cut, uncounted, "
            "unreadable, large, unknown, away, outdated), and none where the request ended without.",
        ),
        Spec("cache_answers", "gauge", (), "Answers in the cache."),
        Spec("cache_bytes", "gauge", (), "Bytes that they count as, packed."),
        Spec("cache_evicted_total", "counter", (), "Answers that went for room."),
        Spec("cache_store_up", "gauge", (), "1 while the store of answers can be asked; memory always."),
        Spec(
            "cache_refused_total", "counter", ("reason",), "Entries of Redis that were refused, and are gone."
        ),
        Spec("cache_dropped_total", "counter", ("reason",), "Answers that Redis was to keep and does not."),
        Spec(
            "cache_saved_tokens_total",
            "counter",
            ("tenant", "direction"),
            "Tokens of hits, as the engine counted them when it made the answer: input or output.",
        ),
        Spec(
            "cache_saved_gpu_seconds_total",
            "counter",
            ("tenant",),
            "Replica time of hits, as measured when the answer was made.",
        ),
        Spec("semantic_requests_total", "counter", ("tenant", "outcome"), "Questions in other words."),
        Spec("semantic_refused_total", "counter", ("guard",), "Alike questions that a guard refused."),
        Spec("semantic_checks_total", "counter", ("outcome",), "Compared answers: same, differing, unmade."),
        Spec("semantic_questions", "gauge", (), "Kept questions."),
        Spec("semantic_off", "gauge", (), "Tenants and groups turned off: too many answers were wrong."),
        Spec("semantic_up", "gauge", (), "1 while the process that embeds is there, or not wanted."),
    ),
    "Prompts": (
        Spec(
            "prompt_error_ratio",
            "gauge",
            ("pool", "by"),
            "How far prompts' expected tokens were off what engines told, of all their tokens over the last "
            "64 answers: of the estimate by bytes (estimate), and of the tokenizer's counts (tokenizer).",
        ),
        Spec("prompt_counts_total", "counter", ("pool", "sized"), "Prompts: exact, partly or estimated."),
        Spec(
            "prompt_texts_total",
            "counter",
            ("pool", "text"),
            "Texts of those prompts: known, new (counted in the background), dropped (too many waited).",
        ),
        Spec("prompt_counts_bytes", "gauge", ("pool",), "Bytes of the counts that are kept."),
        Spec("tokenizer_usable", "gauge", ("pool",), "1 where the pool's tokenizer is gone by, else 0."),
    ),
    "Endpoints": (
        Spec(
            "pool_endpoints",
            "gauge",
            ("pool", "ready"),
            "The pool's endpoints, ready (yes) or not (no); those without series of their own included.",
        ),
        Spec(
            "pool_bound_seconds",
            "gauge",
            ("pool", "resource"),
            "How long the pool has been bound so (memory, compute, permits), or idle; 0 while it is not.",
        ),
        Spec("endpoint_ready", "gauge", AT_POOL, "1 where the endpoint takes requests, else 0."),
        Spec("endpoint_health", "gauge", AT_POOL, "Health, 0 to 1; traffic follows it."),
        Spec("endpoint_in_flight", "gauge", AT_POOL, "Requests on it by this service."),
        Spec("endpoint_waiting", "gauge", AT_POOL, "Requests in the engine's queue, by its agent."),
        Spec("endpoint_running", "gauge", AT_POOL, "Requests that the engine runs, by its agent."),
        Spec(
            "endpoint_kv_utilization", "gauge", AT_POOL, "Used share of its KV memory, 0 to 1, by its agent."
        ),
        Spec(
            "endpoint_cache_source",
            "gauge",
            (*AT_POOL, "source"),
            "1 with where the prefix index knows this endpoint's cache from: guessed (from what was sent "
            "there), usage (answers tell cached tokens), or events (its KV events are heard, none missing).",
        ),
        Spec(
            "endpoint_cache_tokens",
            "gauge",
            AT_POOL,
            "Tokens that its prefix cache is taken to hold, once it was learnt.",
        ),
        Spec(
            "endpoint_cache_corrections_total",
            "counter",
            (*AT_POOL, "cause"),
            "What moved the prefix index of this endpoint: usage_found and usage_gone (answers told more or "
            "fewer cached tokens than believed), late and early (first tokens that came as if nothing, or "
            "more, was cached), events_stored and events_removed (blocks), events_size, emptied (the engine "
            "began anew).",
        ),
        Spec(
            "endpoint_adapter_loads_total",
            "counter",
            AT_POOL,
            "LoRA adapters that requests went there for which were not loaded, as far as is known.",
        ),
        Spec(
            "endpoint_prefix_tokens_total",
            "counter",
            (*AT_POOL, "what"),
            "Prompt tokens that the engine looked up in its prefix cache (queried) and found there (hit), by "
            "its own counters (vLLM, SGLang) as its agent reads them.",
        ),
        Spec(
            "endpoint_kv_events_total",
            "counter",
            (*AT_POOL, "what"),
            "KV events heard by its agent (events), batches that could not be read (unreadable), losses that "
            "no replay made good (gaps), replays asked for (replays), whole caches dropped (clears).",
        ),
        Spec(
            "endpoint_kv_events_complete",
            "gauge",
            AT_POOL,
            "1 where KV events tell of every block that it holds, 0 where some were lost.",
        ),
        Spec(
            "endpoint_stale",
            "gauge",
            AT_POOL,
            "1 where its agent has been silent for too long, else 0; what the agent said is left out then.",
        ),
    ),
    "GPUs": (
        Spec("gpu_utilization_ratio", "gauge", AT_GPU, "Busy share of time, 0 to 1."),
        Spec("gpu_memory_used_bytes", "gauge", AT_GPU, "Memory in use."),
        Spec("gpu_memory_total_bytes", "gauge", AT_GPU, "Memory of the card."),
        Spec("gpu_temperature_celsius", "gauge", AT_GPU, "Temperature."),
        Spec("gpu_power_watts", "gauge", AT_GPU, "Power draw."),
        Spec("gpu_lost", "gauge", AT_GPU, "1 where the driver has lost the card, else 0."),
    ),
    "Scaling": (
        Spec("scaling_wanted_replicas", "gauge", ("pool",), "Replicas that are wanted, by the newest plan."),
        Spec(
            "scaling_reported_replicas",
            "gauge",
            ("pool",),
            "The same as a HorizontalPodAutoscaler must see it to make them, beyond its tolerance of 0.1.",
        ),
        Spec(
            "scaling_replicas",
            "gauge",
            ("pool", "stage"),
            "Replicas that take work (ready), are on their way (loading) or leave (draining).",
        ),
        Spec(
            "scaling_forecast_requests_per_second",
            "gauge",
            ("pool", "bound"),
            "Arrivals a second that are expected when a replica that begins now is ready: low, median, high.",
        ),
        Spec(
            "scaling_horizon_seconds",
            "gauge",
            ("pool",),
            "How far ahead that is: the load time and the orchestrator's own.",
        ),
        Spec(
            "scaling_load_seconds",
            "gauge",
            ("pool", "percentile"),
            "How long a replica takes until it is ready (50, 90): as configured until measured.",
        ),
        Spec(
            "scaling_loads_measured",
            "gauge",
            ("pool",),
            "Loads that this is measured of; 0: it is what the file says.",
        ),
        Spec(
            "scaling_binding",
            "gauge",
            ("pool", "resource"),
            "1 for what one replica fewer would lack: ttft, tpot, permits, kv or none.",
        ),
        Spec(
            "scaling_bound",
            "gauge",
            ("pool", "bound"),
            "1 for what kept the plan from more or fewer: min, max, budget, step, hold or schedule.",
        ),
        Spec(
            "scaling_unmet_replicas",
            "gauge",
            ("pool",),
            "Replicas that are wanted beyond what max_replicas or the budget allows, at least.",
        ),
        Spec(
            "scaling_overdue_ratio",
            "gauge",
            ("pool",),
            "Load times that have passed without a replica becoming ready, while fewer are than wanted.",
        ),
        Spec(
            "scaling_turns",
            "gauge",
            ("pool",),
            "How often what is wanted changed its direction within the last hour.",
        ),
        Spec("scaling_plan_age_seconds", "gauge", ("pool",), "How old the newest plan is."),
        Spec(
            "scaler_silence_seconds",
            "gauge",
            (),
            "How long nobody has asked the external scaler, where there is one.",
        ),
        Spec(
            "desired_replicas",
            "gauge",
            AT_VARIANT,
            "scaling_wanted_replicas under the name that the workload-variant autoscaler gave it.",
            prefix=WVA,
        ),
        Spec("current_replicas", "gauge", AT_VARIANT, "Replicas that are ready or loading.", prefix=WVA),
        Spec(
            "desired_ratio",
            "gauge",
            AT_VARIANT,
            "Wanted over current; wanted where there is none.",
            prefix=WVA,
        ),
    ),
    "The service": (
        Spec(
            "decision_seconds",
            "histogram",
            (),
            "What a decision took in this service, waiting apart.",
            DECISION_S,
        ),
        Spec(
            "prediction_error_ratio",
            "gauge",
            ("what",),
            "Median of |predicted - observed| / observed over the last 64 first tokens (ttft) or "
            "ends (completion).",
        ),
        Spec(
            "events_total",
            "counter",
            ("event",),
            "What has happened at the scheduler, as `steersman status` counts it.",
        ),
        Spec(
            "event_loop_lag_seconds",
            "histogram",
            (),
            "How much later than due the event loop woke: four times a second, fifty where requests wait.",
            LAG_S,
        ),
        Spec("alerts_firing", "gauge", ("rule",), "1 where the alert rule fires, else 0."),
        Spec("build_info", "gauge", ("version",), "Always 1."),
    ),
}
TABLE = tuple(spec for group in GROUPS.values() for spec in group)
