"""The predictor's prior against a real card: `python tests/gpu/prior_check.py` prints JSON.

Owns a Llama-3-8B-shaped decoder in plain torch (random weights, bfloat16, no engine): prefills of many
lengths and, captured as CUDA graphs, decode steps of many batches and contexts. Its times are what the card
does at the least, an engine's host work aside; the prior says what to expect of an engine, its host work
included. Then the learner sees the measured times in a shuffled order, its error taken before each.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its own name)

sys.path.insert(0, str(Path(__file__).parents[2]))
from extproc.core.predict.prior import HOST_MS, prior
from extproc.core.predict.speed import Speed, SpeedModel

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCABULARY = 4096, 32, 32, 8, 14336, 128256
HEAD = HIDDEN // HEADS
MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
PREFILLS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
BATCHES, CONTEXTS = (1, 4, 8, 16, 32, 64), (256, 1024, 4096)
ROUNDS = 7


class Decoder:
    """Weights of one model, and its caches."""

    def __init__(self) -> None:
        torch.manual_seed(1)

        def matrix(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(columns, rows, device="cuda", dtype=torch.bfloat16) * 0.02

        self.layers = [
            {
                "qkv": matrix(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD),
                "out": matrix(HEADS * HEAD, HIDDEN),
                "up": matrix(HIDDEN, 2 * FFN),
                "down": matrix(FFN, HIDDEN),
                "norm": torch.ones(2, HIDDEN, device="cuda", dtype=torch.bfloat16),
            }
            for _ in range(LAYERS)
        ]
        self.head = matrix(HIDDEN, VOCABULARY)
        self.cache: list[tuple[torch.Tensor, torch.Tensor]] = []

    def reserve(self, batch: int, context: int) -> None:
        """Caches that hold `context` tokens of each sequence."""
        self.cache = []
        torch.cuda.empty_cache()
        shape = (batch, KV_HEADS, context, HEAD)
        self.cache = [
            (
                torch.randn(shape, device="cuda", dtype=torch.bfloat16),
                torch.randn(shape, device="cuda", dtype=torch.bfloat16),
            )
            for _ in range(LAYERS)
        ]

    def forward(self, x: torch.Tensor, *, decode: bool) -> torch.Tensor:
        """`x` is (batch, tokens, hidden); the last token's logits."""
        batch, tokens, _ = x.shape
        for number, w in enumerate(self.layers):
            h = F.rms_norm(x, (HIDDEN,), w["norm"][0])
            q, k, v = F.linear(h, w["qkv"]).split([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD], dim=-1)
            q = q.view(batch, tokens, HEADS, HEAD).transpose(1, 2)
            k = k.view(batch, tokens, KV_HEADS, HEAD).transpose(1, 2)
            v = v.view(batch, tokens, KV_HEADS, HEAD).transpose(1, 2)
            if decode:
                keys, values = self.cache[number]
                keys[:, :, -1:], values[:, :, -1:] = k, v
                # The queries that share a head of keys as rows of one product: reads the cache once.
                grouped = q.reshape(batch, KV_HEADS, HEADS // KV_HEADS, HEAD)
                a = F.scaled_dot_product_attention(grouped, keys, values)
                a = a.reshape(batch, HEADS, 1, HEAD)
            else:
                a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(a.transpose(1, 2).reshape(batch, tokens, HEADS * HEAD), w["out"])
            gate, up = F.linear(F.rms_norm(x, (HIDDEN,), w["norm"][1]), w["up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, w["down"])
        return F.linear(x[:, -1], self.head)


def median_ms(call: Any) -> float:
    """The median of some timed calls, after two that are not."""
    for _ in range(2):
        call()
    taken = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(taken)


@torch.inference_mode()
def measured() -> tuple[dict[int, float], dict[tuple[int, int], float]]:
    """Prefills by tokens, and decode steps by (batch, context), in ms."""
    model = Decoder()
    prefills = {}
    for tokens in PREFILLS:
        x = torch.randn(1, tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
        prefills[tokens] = median_ms(lambda x=x: model.forward(x, decode=False))
    steps = {}
    for batch in BATCHES:
        for context in CONTEXTS:
            model.reserve(batch, context)
            x = torch.randn(batch, 1, HIDDEN, device="cuda", dtype=torch.bfloat16)
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(2):
                    model.forward(x, decode=True)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                model.forward(x, decode=True)
            steps[batch, context] = median_ms(graph.replay)
            del graph
    return prefills, steps


def main() -> None:
    """Measure, compare, learn."""
    name = torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(0).total_memory
    expected = prior(name, MODEL, memory_bytes=memory)
    prefills, steps = measured()
    timing = expected.timing
    table: dict[str, Any] = {"card": name, "known": expected.known, "host_ms": HOST_MS}
    table["prefill"] = [
        {"tokens": n, "measured_ms": round(ms, 2), "prior_ms": round(timing.prefill_ms(n), 2)}
        for n, ms in prefills.items()
    ]
    table["step"] = [
        {
            "batch": batch,
            "context": context,
            "measured_ms": round(ms, 2),
            "prior_ms": round(timing.step_ms(batch, batch * context), 2),
        }
        for (batch, context), ms in steps.items()
    ]
    for what in ("prefill", "step"):
        off = [
            abs(row["prior_ms"] - HOST_MS - row["measured_ms"]) / row["measured_ms"] for row in table[what]
        ]
        table[f"{what}_off_without_host"] = {
            "median": round(statistics.median(off), 3),
            "max": round(max(off), 3),
        }
    # The learner, from the prior on: each measured time is met four times, in a shuffled order.
    rng = Random(1)
    speed = Speed(SpeedModel(expected))
    samples = [("prefill", n, 0, ms) for n, ms in prefills.items()] * 4
    samples += [("step", batch, context, ms) for (batch, context), ms in steps.items()] * 4
    rng.shuffle(samples)
    errors: list[float] = []
    for kind, first, second, ms in samples:
        if kind == "prefill":
            errors.append(abs(speed.prefill_ms(first) - ms) / ms)
            speed.saw_prefill(first, 0.0, ms)
        else:
            errors.append(abs(speed.step_ms(first, first * second) - ms) / ms)
            speed.saw_decode(first, first * second, ms)
    quarter = len(errors) // 4
    table["learning_error_median_by_quarter"] = [
        round(statistics.median(errors[i * quarter : (i + 1) * quarter]), 3) for i in range(4)
    ]
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
