"""Protobuf's numbers of varying length, for who takes a message apart without its classes."""

from __future__ import annotations

#: Seven bits a byte: ten bytes hold 64.
BITS_MAX = 70


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends; 0 and past the end where the data end within it, or 64 bits do.

    Less than 2**70, so that a caller who adds it as a length compares it with the data's own.
    """
    value = shift = 0
    while at < len(data) and shift < BITS_MAX:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, len(data) + 1
