"""The book of one replica."""

from __future__ import annotations

from steersman_agent.config import AgentConfig, ReplicaSettings
from steersman_agent.replica import ReplicaBook
from steersman_agent.reply import Failure, PageReply
from steersman_agent.state import Symptom


def page(prompt: float, output: float) -> PageReply:
    text = f"vllm:prompt_tokens_total {prompt}\nvllm:generation_tokens_total {output}\n"
    return PageReply(status=200, body=text.encode(), elapsed_s=0.01)


def test_an_engine_that_began_anew_is_counted() -> None:
    """Once each: when nobody listened meanwhile, and when it was too quick for that but its counters fell."""
    settings = ReplicaSettings(address="10.0.0.1:80", engine="vllm", pool="p")
    book = ReplicaBook(settings, AgentConfig(node="n"))
    refused = Failure(signal=Symptom.REFUSED, detail="refused")
    seen = []
    for at, reply in enumerate(
        (
            refused,
            page(10, 10),
            page(20, 20),
            page(5, 1),
            page(6, 2),
            refused,
            refused,
            page(0, 0),
            page(1, 1),
        )
    ):
        book.on_metrics(reply, float(at))
        seen.append(book.view().engine_starts)
    assert seen == [0, 0, 0, 1, 1, 2, 2, 2, 2]
