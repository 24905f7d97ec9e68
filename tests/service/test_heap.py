"""The heap keeps what large bodies need."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from extproc.service import heap

#: Counts the pages that a process gets from the system while it copies bodies of 400 KB.
COPIES = """
import resource, sys
if sys.argv[1] == "kept":
    from extproc.service.heap import keep_heap
    assert keep_heap()
def copies():
    for _ in range(50):
        body = b"x" * 400_000
        four = [bytearray(body) for _ in range(4)]
copies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
copies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages of a process that has its heap so."""
    done = subprocess.run([sys.executable, "-c", COPIES, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_copies_of_large_bodies_need_no_new_pages() -> None:
    """Of the pages that copies of bodies get by default from the system, less than a tenth is asked for."""
    assert faults("kept") < faults("plain") / 10


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mallopt nothing is set, and nothing fails."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert heap.keep_heap() is False
