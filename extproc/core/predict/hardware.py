"""What GPUs are made of: memory bandwidth, arithmetic and memory, found by the name that NVML gives.

Owns a table from the vendors' data sheets. Knows nothing of models or of timings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One device: bandwidth in GB/s, dense 16-bit arithmetic in TFLOPS, memory in GiB as NVML counts it."""

    bandwidth_gb_per_s: float
    tflops: float
    memory_gib: float


#: Stands in for a device that nobody knows.
A100_80GB: Final = GpuModel(2039, 312, 80)

#: The first expression found in the lower-cased name holds, so the particular stand before the general.
_GPUS: Final[tuple[tuple[re.Pattern[str], GpuModel], ...]] = tuple(
    (re.compile(expression), gpu)
    for expression, gpu in (
        (r"\bgb300|\bb300", GpuModel(8000, 2250, 268)),
        (r"\bgb200|\bb200", GpuModel(8000, 2250, 179)),
        (r"\bgh200", GpuModel(4000, 989, 95)),
        (r"\bh200", GpuModel(4800, 989, 140)),
        (r"\bh100.*nvl", GpuModel(3900, 835, 94)),
        (r"\bh100.*pcie", GpuModel(2000, 756, 80)),
        (r"\bh[18]00", GpuModel(3350, 989, 80)),
        (r"\bh20\b", GpuModel(4000, 148, 96)),
        (r"\ba[18]00.*40gb", GpuModel(1555, 312, 40)),
        (r"\ba[18]00.*pcie", GpuModel(1935, 312, 80)),
        (r"\ba[18]00", A100_80GB),
        (r"\bl40s", GpuModel(864, 362, 45)),
        (r"\bl40\b", GpuModel(864, 181, 45)),
        (r"\bl4\b", GpuModel(300, 121, 22.5)),
        (r"\ba10g", GpuModel(600, 70, 22.5)),
        (r"\ba10\b", GpuModel(600, 125, 22.5)),
        (r"\ba2\b", GpuModel(200, 18, 15)),
        (r"\ba30\b", GpuModel(933, 165, 24)),
        (r"\ba40\b", GpuModel(696, 150, 45)),
        (r"\bt4\b", GpuModel(320, 65, 15)),
        (r"\bv100.*32gb", GpuModel(900, 125, 32)),
        (r"\bv100", GpuModel(900, 125, 16)),
        (r"\bp100", GpuModel(732, 18.7, 16)),
        (r"pro 6000", GpuModel(1792, 500, 95)),
        (r"\b6000 ada", GpuModel(960, 364, 48)),
        (r"\ba6000", GpuModel(768, 155, 48)),
        (r"\ba5000", GpuModel(768, 111, 24)),
        (r"\b5090", GpuModel(1792, 209, 32)),
        (r"\b4090", GpuModel(1008, 165, 24)),
        (r"\b4080", GpuModel(717, 97, 16)),
        (r"\b3090", GpuModel(936, 71, 24)),
        (r"\bmi355x", GpuModel(8000, 2500, 288)),
        (r"\bmi325x", GpuModel(6000, 1307, 256)),
        (r"\bmi300x", GpuModel(5300, 1307, 192)),
        (r"\bmi2[15]0", GpuModel(1638, 185, 64)),
    )
)

#: A MIG slice tells its sevenths of arithmetic and its gigabytes: "A100-SXM4-80GB MIG 3g.40gb".
_SLICE: Final = re.compile(r"\bmig (\d)g\.(\d+)gb")
_SLICE_PARTS: Final = 7


def find_gpu(name: str) -> GpuModel | None:
    """The device of this name, a MIG slice as its share of one; None where the table has none."""
    lowered = name.lower()
    part = _SLICE.search(lowered)
    whole = lowered if part is None else lowered[: part.start()]
    for expression, gpu in _GPUS:
        if expression.search(whole):
            if part is None:
                return gpu
            gib = min(max(float(part[2]), 1.0), gpu.memory_gib)
            return replace(
                gpu,
                bandwidth_gb_per_s=gpu.bandwidth_gb_per_s * gib / gpu.memory_gib,
                tflops=gpu.tflops * min(max(int(part[1]), 1), _SLICE_PARTS) / _SLICE_PARTS,
                memory_gib=gib,
            )
    return None
