"""How large a model is, read from its name: parameters, layers, width, bytes.

Owns the parsing and a small table of shapes. Knows nothing of hardware.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

#: An unnamed model is taken for one of the 8B class.
DEFAULT_BILLIONS: Final = 8.03
#: A parsed size is kept within these, so that a strange name cannot make a strange prior.
BILLIONS_MIN, BILLIONS_MAX = 0.01, 2_000.0
#: Names longer than this are cut before they are searched.
NAME_CHARACTERS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Size:
    """A model: parameters in all and those that one token uses, and the shape of its cache.

    `kv_width` is the width of the keys of one layer (heads of keys × head size); values have as much.
    `bytes_per_parameter` follows the quantisation that the name tells.
    """

    parameters: float
    active: float
    layers: int
    hidden: int
    kv_width: int
    bytes_per_parameter: float = 2.0

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of 16-bit keys and values that one token occupies."""
        return 2.0 * 2.0 * self.layers * self.kv_width


#: (billions, layers, hidden, kv width) of today's dense models; a size between takes the nearest's shape.
_SHAPES: Final[tuple[tuple[float, int, int, int], ...]] = (
    (0.135, 30, 576, 192),
    (0.36, 32, 960, 320),
    (0.5, 24, 896, 128),
    (1.2, 16, 2048, 512),
    (1.7, 24, 2048, 2048),
    (3.2, 28, 3072, 1024),
    (DEFAULT_BILLIONS, 32, 4096, 1024),
    (14.0, 48, 5120, 1024),
    (32.0, 64, 5120, 1024),
    (70.0, 80, 8192, 1024),
    (123.0, 88, 12288, 1024),
    (405.0, 126, 16384, 1024),
)

#: Models whose name tells too little: (in the name, billions, active billions, layers, hidden, kv width).
_KNOWN: Final[tuple[tuple[str, float, float, int, int, int], ...]] = (
    ("mixtral-8x7b", 46.7, 12.9, 32, 4096, 1024),
    ("mixtral-8x22b", 141.0, 39.0, 56, 6144, 1024),
    ("llama-2-7b", 6.74, 6.74, 32, 4096, 4096),
    ("llama-2-13b", 13.0, 13.0, 40, 5120, 5120),
    ("llama-2-70b", 69.0, 69.0, 80, 8192, 1024),
    ("llama-3-8b", 8.03, 8.03, 32, 4096, 1024),
    ("llama-3-70b", 70.6, 70.6, 80, 8192, 1024),
    ("phi-3-mini", 3.8, 3.8, 32, 3072, 3072),
    ("phi-3.5-mini", 3.8, 3.8, 32, 3072, 3072),
    ("phi-3-small", 7.4, 7.4, 32, 4096, 1024),
    ("phi-3-medium", 14.0, 14.0, 40, 5120, 1280),
    ("phi-4-mini", 3.8, 3.8, 32, 3072, 1024),
    ("phi-4", 14.7, 14.7, 40, 5120, 1280),
    ("phi-2", 2.7, 2.7, 32, 2560, 2560),
    ("gpt-oss-120b", 117.0, 5.1, 36, 2880, 512),
    ("gpt-oss-20b", 21.0, 3.6, 24, 2880, 512),
)

#: As above, but only where the name holds no size: "DeepSeek-R1-Distill-Llama-8B" is no R1.
_NAMED: Final[tuple[tuple[str, float, float, int, int, int], ...]] = (
    ("deepseek-v3", 671.0, 37.0, 61, 7168, 288),
    ("deepseek-r1", 671.0, 37.0, 61, 7168, 288),
    ("dbrx", 132.0, 36.0, 40, 6144, 1024),
    ("mistral-large", 123.0, 123.0, 88, 12288, 1024),
    ("mistral-small", 24.0, 24.0, 40, 5120, 1024),
    ("mistral-nemo", 12.2, 12.2, 40, 5120, 1024),
    ("command-r-plus", 104.0, 104.0, 64, 12288, 1024),
    ("command-r", 35.0, 35.0, 40, 8192, 8192),
    ("gpt2-xl", 1.5, 1.5, 48, 1600, 1600),
    ("gpt2", 0.124, 0.124, 12, 768, 768),
)

_EXPERTS: Final = re.compile(r"(?<![\d.])(\d{1,3})x(\d{1,3}(?:\.\d{1,3})?)b(?![a-z0-9])")
_ACTIVE: Final = re.compile(r"(?<![\d.])(\d{1,4}(?:\.\d{1,3})?)b-a(\d{1,3}(?:\.\d{1,3})?)b(?![a-z0-9])")
_BILLIONS: Final = re.compile(r"(?<![\d.])(\d{1,4}(?:\.\d{1,3})?)b(?![a-z0-9])")
_MILLIONS: Final = re.compile(r"(?<![\d.])(\d{1,4}(?:\.\d{1,3})?)m(?![a-z0-9])")
_FOUR_BITS: Final = re.compile(r"awq|gptq|int4|4-?bit|nf4|fp4|w4a16|(?<![a-z0-9])q4|gpt-oss")
_EIGHT_BITS: Final = re.compile(r"fp8|int8|8-?bit|w8a8|(?<![a-z0-9])q8")
#: Scales and zero points make a 4-bit weight a little more than half a byte.
FOUR_BITS_BYTES: Final = 0.56
#: Of a mixture "8x7b" the experts share their attention (Mixtral: 46.7 of 56), and a token uses two.
_EXPERTS_SHARED, _EXPERTS_ACTIVE = 0.834, 1.843


def size_of(model: str) -> Size:
    """The size that a model's name tells; a name that tells nothing is one of the 8B class."""
    name = model.lower()[-NAME_CHARACTERS_MAX:].replace("_", "-").replace("meta-llama-", "llama-")
    for needle, total, active, layers, hidden, width in _KNOWN:
        if needle in name:
            return Size(total * 1e9, active * 1e9, layers, hidden, width, _bytes_per_parameter(name))
    billions = _parse(name)
    if billions is None:
        for needle, total, active, layers, hidden, width in _NAMED:
            if needle in name:
                return Size(total * 1e9, active * 1e9, layers, hidden, width, _bytes_per_parameter(name))
        billions = (DEFAULT_BILLIONS, DEFAULT_BILLIONS)
    total = min(max(billions[0], BILLIONS_MIN), BILLIONS_MAX)
    active = min(max(billions[1], BILLIONS_MIN), total)
    _, layers, hidden, width = min(_SHAPES, key=lambda shape: abs(math.log(shape[0] / active)))
    return Size(total * 1e9, active * 1e9, layers, hidden, width, _bytes_per_parameter(name))


def _parse(name: str) -> tuple[float, float] | None:
    """Billions of parameters in all and used per token, or None."""
    if found := _EXPERTS.search(name):
        one = float(found[2])
        return float(found[1]) * one * _EXPERTS_SHARED, one * _EXPERTS_ACTIVE
    if found := _ACTIVE.search(name):
        return float(found[1]), float(found[2])
    if found := _BILLIONS.search(name):
        return float(found[1]), float(found[1])
    if found := _MILLIONS.search(name):
        return float(found[1]) / 1e3, float(found[1]) / 1e3
    return None


def _bytes_per_parameter(name: str) -> float:
    if _FOUR_BITS.search(name):
        return FOUR_BITS_BYTES
    return 1.0 if _EIGHT_BITS.search(name) else 2.0
