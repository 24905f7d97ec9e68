"""Fixtures of the end-to-end tests: one gateway per module, of four replicas in two pools."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway import Gateway
from replicas import Replicas, specs


@pytest.fixture(scope="module")
def fleet() -> Iterator[tuple[Gateway, Replicas]]:
    """A gateway over two pools (tiny-chat, tiny-code) of two simulated replicas each."""
    with (
        Replicas(specs(2) + specs(2, model_id="tiny-code")) as replicas,
        Gateway(
            {
                "chat": {"models": ["tiny-chat"], "addresses": replicas.addresses[:2]},
                "code": {"models": ["tiny-code"], "addresses": replicas.addresses[2:]},
            },
        ) as gateway,
    ):
        yield gateway, replicas
