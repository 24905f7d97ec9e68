"""Responses that are held outlive their service: with the official client, through the real Envoy."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway import KEYS, Gateway, chat_pool, wait_for
from openai import NotFoundError, OpenAI
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy


def test_responses_are_found_again_after_a_kill(tmp_path: Path) -> None:
    """Each on the replica that holds it, to be had and continued; to another tenant as unknown as before."""
    with Replicas(specs(2)) as replicas:
        pools = chat_pool(replicas.addresses, engine="vllm")
        with Gateway(pools, state={"dir": str(tmp_path)}) as gateway:
            base = f"{gateway.url}/v1"
            with OpenAI(base_url=base, api_key=KEYS["acme"], max_retries=2, timeout=60) as client:
                raw = client.responses.with_raw_response
                made = []
                for number in range(6):
                    answer = raw.create(model="tiny-chat", input=f"{number} [[sim:out=2]]")
                    made.append((answer.parse().id, answer.headers["x-sim-port"]))
                ids = [identity.encode() for identity, _ in made]
                wait_for("their file", lambda: all(each in _kept(tmp_path) for each in ids))
                gateway.service.kill()
                gateway.start_service()
                wait_for("Envoy", gateway.ready)
                assert gateway.status()["responses"]["known"] == 6
                for identity, port in made:
                    assert raw.retrieve(identity).headers["x-sim-port"] == port
                    more = raw.create(model="tiny-chat", input="[[sim:out=1]]", previous_response_id=identity)
                    assert more.headers["x-sim-port"] == port
            with OpenAI(base_url=base, api_key=KEYS["globex"], max_retries=0, timeout=60) as other:
                with pytest.raises(NotFoundError, match="no response"):
                    other.responses.retrieve(made[0][0])


def _kept(folder: Path) -> bytes:
    return b"".join(each.read_bytes() for each in folder.glob("responses.*.kept"))
