"""Talking to Redis: how long to wait, and what to say of a failure."""

from __future__ import annotations

from random import Random

import pytest

from extproc.state import redis_client
from extproc.state.redis_client import BACKOFF_FIRST_S, BACKOFF_LONGEST_S, Backoff, place, reason


def test_the_backoff_doubles_to_its_longest_with_chance_in_it() -> None:
    """Each wait lies between half and the whole of its step."""
    backoff = Backoff(Random(1))
    waits = [backoff.next_s() for _ in range(40)]
    for number, wait in enumerate(waits):
        step = min(BACKOFF_FIRST_S * 2**number, BACKOFF_LONGEST_S)
        assert step / 2 <= wait <= step
    assert len(set(waits)) == len(waits)
    backoff.reset()
    assert backoff.next_s() <= BACKOFF_FIRST_S


def test_a_place_says_no_password() -> None:
    """Host and port, or the path of a socket."""
    assert place("redis://user:secret@redis.example:6380/2") == "redis.example:6380"
    assert place("unix:///run/redis.sock") == "/run/redis.sock"


def test_a_reason_is_one_line() -> None:
    """Of the first failure in a group; a type where there is no text."""
    assert reason(ExceptionGroup("both", [OSError("no\nroute"), OSError("b")])) == "no route"
    assert reason(TimeoutError()) == "timeout"
    assert reason(KeyError()) == "KeyError"


def test_a_url_of_something_else_is_refused_at_once() -> None:
    """So that a typo is a configuration error, not an endless reconnect."""
    with pytest.raises(ValueError, match="scheme"):
        redis_client.connect("http://localhost")
