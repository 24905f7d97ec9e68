"""What an engine's timing should be before it has served anything: a roofline from names.

Owns the roofline and its efficiencies, fitted by hand to the published step times of splitwise-sim and vidur.
Knows no measurement: what was seen is `speed`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from extproc.core.predict.hardware import A100_80GB, GIB, find_gpu
from extproc.core.predict.sizes import FOUR_BITS_BYTES, Size, size_of
from extproc.core.predict.timing import Timing

#: Shares of the data sheet's figures that engines reach: reading weights, reading the KV cache, matrix
#: products, attention. Both one-GPU rows of replica-models.md agree on them within 10 %.
WEIGHTS_READ, KV_READ, MATRIX, ATTENTION = 0.8, 0.7, 0.75, 0.47
#: Host work of every step: replica-models.md says 1 to 4 ms.
HOST_MS: Final = 2.0
#: A short prefill costs this much of a decode step's fixed part, and a sequence of a batch this much of
#: a prefilled token.
PREFILL_BASE, SEQUENCE = 0.6, 0.45
#: Several GPUs synchronise twice a layer: milliseconds a layer and doubling of the group; a sequence and
#: layer; and the bandwidth at which a prefill's activations cross. From the four 70B rows (end to end).
SYNC_MS_PER_LAYER, SYNC_MS_PER_SEQUENCE, LINK_GB_PER_S = 0.105, 0.002, 65.0
#: Engines take this share of a GPU's memory, and each GPU loses this much to activations and graphs.
MEMORY_USED, MEMORY_LOST_BYTES = 0.9, 2e9
#: Whatever the arithmetic says, this share of the memory is taken for cache.
CACHE_SHARE_MIN: Final = 0.05
#: GPUs of one engine that are believed.
GPUS_MAX: Final = 64
#: Bytes of a GPU's memory that are believed.
MEMORY_BYTES_MIN, MEMORY_BYTES_MAX = 2**30, 2**40


@dataclass(frozen=True, slots=True)
class Prior:
    """An engine before any traffic.

    `known` is False where the GPU's name was not found, and the figures are those of one A100-80GB.
    Treat `timing` as constant: learners copy it.
    """

    timing: Timing
    kv_capacity_tokens: int
    known: bool


def prior(gpu: str = "", model: str = "", *, gpus: int = 1, memory_bytes: int | None = None) -> Prior:
    """The timing and KV capacity to expect of `gpus` devices named `gpu` that serve `model` together.

    `gpu` is NVML's name, `memory_bytes` what one device has (its data sheet's where None). A model that
    does not fit at 16 bits is taken for one of 8, then 4 bits. Within about 35 % of the published rows
    (tests/core/test_predict_prior.py); a mixture's decode reads half of its idle experts.
    """
    device = find_gpu(gpu)
    known = device is not None
    device = device or A100_80GB
    size = size_of(model)
    gpus = min(max(gpus, 1), GPUS_MAX)
    each = device.memory_gib * GIB if not memory_bytes or memory_bytes <= 0 else float(memory_bytes)
    memory = gpus * min(max(each, MEMORY_BYTES_MIN), MEMORY_BYTES_MAX)
    usable = max(memory * MEMORY_USED - gpus * MEMORY_LOST_BYTES, memory * CACHE_SHARE_MIN)
    per_parameter = _fitting(size, usable)

    bandwidth = device.bandwidth_gb_per_s * 1e6  # bytes a millisecond
    arithmetic = device.tflops * 1e9  # operations a millisecond
    read_ms = (size.parameters + size.active) / 2.0 * per_parameter / (bandwidth * gpus * WEIGHTS_READ)
    token_ms = 2.0 * size.active / (arithmetic * gpus * MATRIX)
    sync_ms = SYNC_MS_PER_LAYER * size.layers * math.log2(gpus)
    crossing = 2.0 * (gpus - 1) / gpus * 4.0 * size.hidden * size.layers / (LINK_GB_PER_S * 1e6)
    prefill_token_ms = token_ms + crossing
    timing = Timing(
        decode_base_ms=read_ms + sync_ms + HOST_MS,
        decode_per_sequence_ms=SEQUENCE * prefill_token_ms
        + (SYNC_MS_PER_SEQUENCE * size.layers if gpus > 1 else 0.0),
        # The 70B rows cost as if every GPU read the whole cache, so the group does not divide it.
        decode_per_context_token_ms=size.kv_bytes_per_token / (bandwidth * KV_READ),
        prefill_base_ms=PREFILL_BASE * (read_ms + sync_ms) + HOST_MS,
        prefill_per_token_ms=prefill_token_ms,
        # Causal attention: 4·hidden operations a layer for each of n²/2 pairs.
        prefill_per_square_ms=2.0 * size.hidden * size.layers / (arithmetic * gpus * ATTENTION),
    )
    cache = max(usable - size.parameters * per_parameter, memory * CACHE_SHARE_MIN)
    return Prior(timing, max(1, int(cache / size.kv_bytes_per_token)), known)


def _fitting(size: Size, usable: float) -> float:
    """Bytes per parameter: what the name tells, or the widest below it that fits the memory."""
    narrower = [width for width in (2.0, 1.0, FOUR_BITS_BYTES) if width <= size.bytes_per_parameter]
    for width in narrower:
        if size.parameters * width < usable:
            return width
    return narrower[-1]
