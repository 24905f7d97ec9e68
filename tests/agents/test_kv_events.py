"""KV events of vLLM and SGLang: what an agent hears of them, and what it tells the service."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.prefix import chain_ids, of_adapter
from steersman_agent import kv_book
from steersman_agent.config import AgentConfigError, KvEventsSettings, loads
from steersman_agent.figures import KvView
from steersman_agent.kv_book import KvBook, merged
from steersman_agent.kv_listen import KvListener
from tests.agents.kv_publisher import ARRAYS, CLEARED, MAPS, KvPublisher, batch, removed, stored

IDS = list(range(1000, 1320))  # 320 tokens: 20 blocks of 16, 5 of ours


def ours(ids: list[int]) -> tuple[int, ...]:
    return chain_ids(struct.pack(f"<{len(ids)}I", *ids))


def all_of(form: str = MAPS, ids: list[int] = IDS) -> bytes:
    return batch(stored(list(range(len(ids) // 16)), ids), form=form)


@pytest.mark.parametrize("form", [ARRAYS, MAPS])
def test_blocks_come_go_and_are_cleared(form: str) -> None:
    """Either form tells what is held: tokens, our digests, and that all of it was dropped."""
    book = KvBook()
    book.take(0, all_of(form), 1.0)
    view = book.view(1.0)
    assert (view.cached_tokens, view.stored_blocks, view.complete) == (320, 20, True)
    assert view.stored == ours(IDS)
    book.take(1, batch(removed(19, 18), at_s=2.0, form=form), 2.0)
    view = book.view(2.0)
    assert (view.cached_tokens, view.removed) == (288, ours(IDS)[4:])
    assert view.stored == ours(IDS)[:4]
    book.take(2, batch(CLEARED, at_s=3.0, form=form), 3.0)
    view = book.view(3.0)
    assert (view.cached_tokens, view.clears, view.stored, view.removed) == (0, 1, (), ())


@given(st.lists(st.integers(0, 2**32 - 1), max_size=400), st.integers(1, 96), st.data())
def test_digests_are_the_indexes_own(ids: list[int], size: int, data: st.DataObject) -> None:
    """However the engine cuts a prompt into blocks and events, the digests are the index's own."""
    book, blocks, at, sequence = KvBook(), len(ids) // size, 0, 0
    while at < blocks:
        count = data.draw(st.integers(1, blocks - at))
        part = ids[at * size : (at + count) * size]
        hashes = list(range(at, at + count))
        book.take(sequence, batch(stored(hashes, part, parent=at - 1 if at else None, size=size)), 1.0)
        at, sequence = at + count, sequence + 1
    assert book.view(1.0).stored == ours(ids[: blocks * size])


@pytest.mark.parametrize(
    "more",
    [
        {"lora_id": 3},
        {"lora_name": 7},
        {"lora_name": "a", "extra_keys": [["a", "salt"], ["a"], ["a"], ["a"]]},
        {"extra_keys": [["a"], None, None, None]},
        {"extra_keys": [["image"]]},
        {"parent": 99},
    ],
)
def test_what_is_not_plainly_the_prompts_has_no_digest(more: dict[str, object]) -> None:
    """Blocks of an adapter without a name, with extra keys, or whose beginning nobody knows only count."""
    book = KvBook()
    book.take(0, batch(stored([1, 2, 3, 4], IDS[:64], **more)), 1.0)  # type: ignore[arg-type]
    view = book.view(1.0)
    assert (view.cached_tokens, view.stored) == (64, ())


@pytest.mark.parametrize("form", [ARRAYS, MAPS])
@pytest.mark.parametrize("extra", [None, [["law"]] * 4])
def test_an_adapters_blocks_are_its_own(form: str, extra: list[list[str]] | None) -> None:
    """The same tokens under two adapters and the base have three sets of digests, each the index's own, and
    what the engine drops of one leaves the others."""
    book, ids = KvBook(), IDS[:128]
    book.take(0, batch(stored(list(range(4)), ids, size=32), form=form), 1.0)
    law = {"lora_id": 1, "lora_name": "law", "extra_keys": extra}
    book.take(1, batch(stored([10, 11], ids[:64], size=32, **law), at_s=2.0, form=form), 1.0)
    # The rest of its prompt, in an event of its own.
    book.take(2, batch(stored([12, 13], ids[64:], parent=11, size=32, **law), at_s=3.0, form=form), 1.0)
    code = {"lora_id": 2, "lora_name": "code"}
    book.take(3, batch(stored([20, 21], ids[:64], size=32, **code), at_s=4.0, form=form), 1.0)
    base = ours(ids)
    assert book.view(1.0).stored == (*base, *of_adapter(base, "law"), *of_adapter(base[:1], "code"))
    book.take(4, batch(removed(12, 13), at_s=5.0, form=form), 2.0)
    assert book.view(2.0).removed == of_adapter(base, "law")[1:]


def test_the_unknown_and_the_broken_do_no_harm() -> None:
    """Events, fields and hashes of other kinds are passed over; a batch that is none counts and is a gap."""
    book = KvBook()
    odd = [{"type": "Teleported"}, stored([b"x"], [[1, 2]] * 16), {"type": "BlockStored"}, removed(7)]
    book.take(0, batch(*odd), 1.0)
    assert book.view(1.0).cached_tokens == 16
    for number, payload in enumerate((b"", b"\xc1", b"\x90", batch()[:-2], b"\x93\x01\x02\x03"), 1):
        book.take(number, payload, 1.0)
    view = book.view(1.0)
    assert (view.unreadable, view.gaps, view.complete, book.expected) == (5, 5, False, 6)


NEWEST = {
    "lora_id": None,
    "lora_name": None,
    "extra_keys": [None, None],
    "group_idx": 0,
    "kv_cache_spec_kind": "full_attention",
    "kv_cache_spec_sliding_window": None,
}


@pytest.mark.parametrize("form", [ARRAYS, MAPS])
def test_fields_that_are_newer_than_we_are_change_nothing(form: str) -> None:
    """The newest fields of vLLM's events and any to come are passed over, in either form: what is told of
    tokens and digests is the same."""
    book, plain = KvBook(), KvBook()
    event = stored([1, 2], IDS[:128], size=64)
    book.take(0, batch({**event, **NEWEST, "of_tomorrow": {"a": [1]}}, form=form), 1.0)
    plain.take(0, batch(event, form=form), 1.0)
    assert book.view(1.0) == plain.view(1.0)
    assert book.view(1.0).stored == ours(IDS[:128])
    book.take(1, batch({**removed(2), "group_idx": 0, "of_tomorrow": 1}, at_s=2.0, form=form), 1.0)
    assert (book.view(1.0).cached_tokens, book.view(1.0).removed) == (64, ours(IDS)[1:2])


def test_another_tier_and_another_group_are_not_this_cache() -> None:
    """Blocks in the machine's memory, and those of a hybrid model's other groups, are not counted."""
    book = KvBook()
    book.take(0, batch(stored([1], IDS[:16], medium="CPU_PINNED"), stored([2], IDS[:16], group_idx=1)), 1.0)
    assert book.view(1.0).cached_tokens == 0


def test_a_gap_clears_the_set_and_says_so_and_a_repeat_does_nothing() -> None:
    """Numbers that are missing for good: nothing is known to be held; the same batch again is no restart."""
    book = KvBook()
    book.take(0, all_of(), 1.0)
    book.take(0, all_of(), 1.0)
    assert book.view(1.0).cached_tokens == 320
    book.take(3, batch(stored([77], IDS[:16]), at_s=4.0), 1.0)
    view = book.view(1.0)
    assert (view.cached_tokens, view.gaps, view.complete, view.clears) == (16, 1, False, 0)


def test_numbers_that_begin_anew_are_a_restart() -> None:
    """A later batch with an earlier number is another process: all is dropped, and known in full again."""
    book = KvBook()
    book.take(0, all_of(), 1.0)
    book.take(1, batch(at_s=2.0), 1.0)
    book.take(0, batch(stored([5], IDS[:16]), at_s=9.0), 1.0)
    view = book.view(1.0)
    assert (view.cached_tokens, view.clears, view.complete, book.expected) == (16, 1, True, 1)


def test_memory_and_reports_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bounds a set is said to be incomplete, and changes that no report tells are counted."""
    monkeypatch.setattr(kv_book, "BLOCKS_MAX", 12)
    monkeypatch.setattr(kv_book, "CHANGES_MAX", 2)
    book = KvBook()
    book.take(0, all_of(), 1.0)
    view = book.view(1.0)
    assert (view.cached_tokens, view.complete, len(view.stored), view.changes_left_out) == (192, False, 2, 1)
    assert book.view(1.0 + kv_book.CHANGES_S + 0.1).stored == ()


def test_a_block_that_one_rank_holds_is_held() -> None:
    """Ranks' sums are added; what one dropped and another holds is not told as removed."""
    one, two = KvBook(), KvBook()
    one.take(0, all_of(), 1.0)
    two.take(0, all_of(), 1.0)
    one.take(1, batch(removed(*range(20)), at_s=2.0), 1.0)
    view = merged([one, two], 1.0)
    assert view is not None
    assert (view.cached_tokens, view.removed, view.stored) == (320, (), ours(IDS))
    assert merged([], 1.0) is None


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5557", "tcp://*:5557", "http://127.0.0.1:1"])
def test_where_no_publisher_can_be_is_a_mistake(endpoint: str) -> None:
    """The file, the path and what to write instead are named."""
    text = (
        "services: ['127.0.0.1:1']\nreplicas:\n- {address: '127.0.0.1:2', pool: p, engine: vllm, "
        f"kv_events: {{endpoint: '{endpoint}'}}}}\n"
    )
    with pytest.raises(
        AgentConfigError, match=r"replicas\[0\].kv_events.endpoint: .* such as tcp://127.0.0.1:5557"
    ):
        loads(text)


@pytest.fixture(params=[ARRAYS, MAPS])
def publisher(request: pytest.FixtureRequest) -> Iterator[KvPublisher]:
    pytest.importorskip("zmq", reason="hearing KV events needs the extra 'kv-events' (pyzmq)")
    # vLLM 0.32 publishes maps and replays with topics; who publishes arrays replays without.
    made = KvPublisher(form=request.param, kept=8, topics=request.param == MAPS)
    yield made
    made.close()


def heard(publisher: KvPublisher, play: Callable[[], None], until: Callable[[KvView], bool]) -> KvView:
    """What a listener over real ZeroMQ has heard once `until` is true."""
    settings = KvEventsSettings(
        endpoint=f"tcp://127.0.0.1:{publisher.port}", replay=f"tcp://127.0.0.1:{publisher.replay_port}"
    )

    async def listen() -> KvView:
        stirred = asyncio.Event()
        listener = KvListener(settings, 0, changed=stirred.set)
        task = asyncio.create_task(listener.run())
        try:
            await asyncio.to_thread(publisher.subscribed)
            play()
            async with asyncio.timeout(30):
                while not until(listener.book.view(0.0)):
                    stirred.clear()
                    await stirred.wait()
            return listener.book.view(0.0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(listen())


def test_events_are_heard_and_what_was_missed_is_replayed(publisher: KvPublisher) -> None:
    """What came before it listened, and what was lost, is asked for, and counts once."""
    publisher.lose(stored([0, 1, 2, 3], IDS[:64]))

    def play() -> None:
        publisher.send(stored([4, 5, 6, 7], IDS[64:128], parent=3))
        publisher.lose(removed(7))
        publisher.send(stored([8], IDS[:16], parent=6))

    view = heard(publisher, play, lambda view: view.stored_blocks == 9)
    assert (view.cached_tokens, view.gaps, view.complete, view.replays) == (128, 0, True, 2)


def test_what_no_replay_has_any_more_is_a_gap(publisher: KvPublisher) -> None:
    """More were lost than the publisher keeps: the set is cleared, and said to be incomplete."""

    def play() -> None:
        publisher.send(stored([0, 1, 2, 3], IDS[:64]))
        for number in range(20):
            publisher.lose(stored([100 + number], IDS[:16]))
        publisher.send(stored([9], IDS[:16]))

    view = heard(publisher, play, lambda view: view.gaps > 0 and view.events >= 9)
    assert (view.gaps, view.complete, view.cached_tokens) == (1, False, 8 * 16)
