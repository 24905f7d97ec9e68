"""Counting prompts: cuts, keys, the background, templates, and tokenizers that are wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.core.promptcount import CountErrors, PromptCount, PromptShape
from extproc.core.request import Request
from extproc.tokens.blocks import BLOCK_CHARACTERS, CUT_TOKENS_MAX, blocks
from extproc.tokens.counter import BACKLOG_BYTES_MAX, HASHED_BYTES_MAX, JUDGED_MIN, PoolCounter
from extproc.tokens.counts import ENTRY_BYTES, SegmentCounts
from extproc.tokens.overhead import TOOLS_MAX, TemplateOverhead
from extproc.tokens.tokenizer import PROBES, FileTokenizer, TokenizerError, bias_of, load
from tests.stand.vocabulary import FAMILIES, asked, prose, written


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    return load(written(tmp_path_factory.mktemp("tok"), request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    return load(written(tmp_path_factory.mktemp("tok")))


def counter_of(tokenizer: FileTokenizer, **more: object) -> PoolCounter:
    counter = PoolCounter(bytes_max=1 << 20, error_max=0.05, **more)  # type: ignore[arg-type]
    counter.begin(tokenizer.bias, tokenizer.counts)
    return counter


def catch_up(counter: PoolCounter, tokenizer: FileTokenizer) -> None:
    """What the background does."""
    while texts := counter.take(16_384):
        counts = tokenizer.counts(list(texts.values()))
        counter.counted(dict(zip(texts, counts, strict=True)))


def known(counter: PoolCounter, request: Request) -> PromptCount:
    found = counter.count(request, request.prompt_bytes // 4, 4.0)
    assert found is not None
    return found


@given(st.text(max_size=6_000) | st.integers(0, 20_000).map(lambda at: prose()[at : at + 6_000]))
@settings(max_examples=60, deadline=None)
def test_blocks_are_the_text(text: str) -> None:
    """Blocks are the text, each within its bound, and none is empty."""
    found = blocks(text)
    assert "".join(found) == text
    assert all(0 < len(each) <= BLOCK_CHARACTERS for each in found)


@given(st.integers(3_000, 9_000), st.integers(0, 20_000))
@settings(max_examples=30, deadline=None)
def test_texts_that_begin_alike_share_their_blocks(shared: int, at: int) -> None:
    """Of two texts that share a beginning all blocks but the last of it are equal."""
    one, other = (prose()[:shared] + prose()[at + step : at + step + 2_000] for step in (0, 777))
    assert blocks(one)[: shared // BLOCK_CHARACTERS - 1] == blocks(other)[: shared // BLOCK_CHARACTERS - 1]


def test_a_cut_costs_next_to_nothing(tokenizer: FileTokenizer) -> None:
    """A text's count by blocks is the whole's within the bound of each cut, and far nearer in the mean."""
    off = []
    for begin in range(0, 40_000, 5_000):
        text = prose()[begin : begin + 9_000]
        parts = blocks(text)
        by_blocks = sum(tokenizer.counts(parts)) - round(tokenizer.bias * (len(parts) - 1))
        (whole,) = tokenizer.counts([text])
        assert abs(by_blocks - whole) <= CUT_TOKENS_MAX * (len(parts) - 1)
        off.append(abs(by_blocks - whole) / whole)
    assert sum(off) / len(off) < 0.002


def test_counts_are_neither_cut_off_nor_filled_up(llama: FileTokenizer) -> None:
    """A file that cuts prompts off at 128 tokens is counted by whole."""
    assert llama.counts([prose()[:20_000], ""])[0] > 3_000


def test_odd_texts_are_counted(llama: FileTokenizer) -> None:
    """Half a surrogate pair, a zero and a mark of a special token count as texts."""
    assert all(count > 0 for count in llama.counts(["\ud800", "\x00", "<|im_start|>", "é" * 300]))


def test_a_shared_prompt_is_counted_once(llama: FileTokenizer) -> None:
    """A system prompt that was counted is known at once; a new question beside it is estimated alone."""
    counter = counter_of(llama)
    system = prose()[:9_000]
    first = asked(("system", system), ("user", "What is a pool?"))
    before = known(counter, first)
    assert (before.tokens, before.exact) == (None, False)
    catch_up(counter, llama)
    after = known(counter, first)
    text_tokens = sum(llama.counts([system, "What is a pool?"]))
    assert after.exact
    assert after.tokens is not None
    assert abs(after.tokens - text_tokens - 13) <= 2 * CUT_TOKENS_MAX * len(blocks(system))
    new = known(counter, asked(("system", system), ("user", "And what is a quota, and who pays?")))
    assert not new.exact
    assert new.tokens is not None
    assert abs(new.tokens - after.tokens) < 20
    assert counter.texts["new"] == 3


def test_a_long_text_is_known_by_its_blocks(llama: FileTokenizer) -> None:
    """Of a plain prompt that begins as another did, the beginning is counted and the rest estimated."""
    counter = counter_of(llama)
    base = prose()[:9_000]
    for number in range(2):
        request = asked(path="/v1/completions", prompt=f"{base} Question {number}: why?" + "x" * number)
        found = known(counter, request)
        catch_up(counter, llama)
    assert found.tokens is not None
    assert abs(found.tokens - llama.counts([base])[0]) < 300
    assert not found.exact
    assert known(counter, request).exact


def test_short_texts_are_counted_at_once_where_they_may_be(llama: FileTokenizer) -> None:
    """With inline_bytes a short new question is exact the first time; a longer one waits."""
    counter = counter_of(llama, inline_bytes=64)
    assert known(counter, asked(("user", "What is a pool?"))).exact
    assert not known(counter, asked(("user", "What is a pool? " * 10))).exact


def test_what_is_too_large_is_estimated_unhashed(llama: FileTokenizer) -> None:
    """A prompt above the bound costs no hash and is not kept to be counted."""
    counter = counter_of(llama)
    assert counter.count(asked(("user", "a" * (HASHED_BYTES_MAX + 1))), 7, 4.0) is None
    assert (counter.waiting, counter.prompts["estimated"]) == (0, 1)


def test_what_waits_is_bounded(llama: FileTokenizer) -> None:
    """Texts beyond the backlog's bound are dropped, counted, and taken the next time there is room."""
    counter = counter_of(llama)
    for number in range(60):
        counter.count(
            asked(("user", " ".join(map(str, range(number * 30_000, (number + 1) * 30_000))))), 1, 4.0
        )
    assert counter.waiting <= BACKLOG_BYTES_MAX
    assert counter.texts["dropped"] > 0
    counter.end("gone")
    assert (counter.waiting, counter.take(1 << 30)) == (0, {})


def test_memory_is_bounded() -> None:
    """Counts beyond the bytes go, the least recently used first."""
    kept = SegmentCounts(10 * ENTRY_BYTES)
    keys = [kept.key(f"text {number}") for number in range(20)]
    for number, key in enumerate(keys):
        kept.put(key, number)
        kept.get(keys[0])
    assert len(kept) == 10
    assert kept.get(keys[0]) == 0
    assert kept.get(keys[5]) is None
    assert kept.evicted == 10


def test_keys_are_of_one_process() -> None:
    """Two caches know one text by different keys, so that nobody can make two texts count as one."""
    assert SegmentCounts(1 << 20).key("a") != SegmentCounts(1 << 20).key("a")


def template(request: Request, llama: FileTokenizer, *, base: int = 9, each: int = 6) -> int:
    """What an engine would tell: texts, and what its template adds."""
    return sum(llama.counts(request.segments)) + base + each * request.messages


def test_a_template_is_learned(llama: FileTokenizer) -> None:
    """After a few answers the template's own tokens are known, for any number of messages."""
    counter = counter_of(llama)
    for number in range(30):
        turns = [("user", f"Question {number} of {turn}") for turn in range(1 + number % 7)]
        request = asked(*turns)
        counted = known(counter, request)
        catch_up(counter, llama)
        counter.ended(counted, template(request, llama))
    late = asked(*[("user", f"Another {turn}") for turn in range(12)])
    counter.count(late, 1, 4.0)
    catch_up(counter, llama)
    found = known(counter, late)
    assert found.tokens is not None
    assert abs(found.tokens - template(late, llama)) <= 1
    assert found.exact
    assert found.margin is not None
    assert counter.errors.share is not None
    assert counter.errors.share < 0.05


def test_tools_are_learned_by_their_digest(llama: FileTokenizer) -> None:
    """What a set of tools costs is known after its first answer; another set's is not."""
    counter = counter_of(llama)
    tools = [{"type": "function", "function": {"name": "add"}}]
    plain, with_tools = asked(("user", "hi")), asked(("user", "hi"), tools=tools)
    assert not known(counter, with_tools).exact
    catch_up(counter, llama)
    for request, more in ((plain, 0), (plain, 0), (with_tools, 170)):
        counter.ended(known(counter, request), template(request, llama) + more)
    found = known(counter, with_tools)
    assert found.exact
    assert found.tokens is not None
    assert abs(found.tokens - template(with_tools, llama) - 170) <= 2
    other = asked(("user", "hi"), tools=[*tools, *tools])
    assert not known(counter, other).exact


def test_images_are_reckoned_beside_the_counted_text(llama: FileTokenizer) -> None:
    """A prompt with an image is counted as far as it is text, is never exact, and teaches nothing."""
    counter = counter_of(llama)
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]
    request = asked(messages=[{"role": "user", "content": parts}])
    counter.count(request, 1, 4.0)
    catch_up(counter, llama)
    counted = known(counter, request)
    assert counted.tokens is not None
    assert (counted.exact, counted.margin) == (False, None)
    counter.ended(counted, 5_000)
    assert counter.errors.count == 0
    assert counter.overhead.plain() == {}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": {"odd": "shape"}},
    ],
)
def test_what_no_count_covers_is_estimated(llama: FileTokenizer, message: dict[str, object]) -> None:
    """Tool calls and shapes that nobody reads leave a prompt to the estimate; nothing of it is kept."""
    counter = counter_of(llama)
    request = asked(messages=[message, {"role": "user", "content": "go on"}])
    assert counter.count(request, 1, 4.0) is None
    assert counter.waiting == 0


def test_another_models_tokenizer_is_found_out(tmp_path: Path) -> None:
    """A tokenizer whose counts are off is not gone by and says why; the right one is trusted again."""
    right, wrong = load(written(tmp_path, "llama3")), load(written(tmp_path, "llama3", 400))
    counter = counter_of(wrong)
    for number in range(2 * JUDGED_MIN):
        request = asked(("user", prose()[number * 500 : number * 700 + 900]))
        counted = known(counter, request)
        catch_up(counter, wrong)
        counter.ended(counted, template(request, right))
    assert "another model's" in counter.distrusted
    assert "tokenizer.json" in counter.distrusted
    found = known(counter, request)
    assert (found.tokens, found.exact, found.margin) == (None, False, None)
    counter.begin(right.bias, right.counts)
    assert counter.distrusted == ""


def test_a_few_odd_prompts_do_not_discredit_it(llama: FileTokenizer) -> None:
    """Where some prompts hold what no text shows (documents beside the messages), the rest stays counted."""
    counter = counter_of(llama)
    for number in range(60):
        request = asked(("user", prose()[number * 300 : number * 300 + 900]))
        counter.count(request, 1, 4.0)
        catch_up(counter, llama)
        more = 20_000 if number % 3 == 0 else 0
        counter.ended(known(counter, request), template(request, llama) + more)
    assert counter.errors.share is not None
    assert counter.errors.share > counter.error_max
    assert counter.distrusted == ""
    assert known(counter, request).tokens == template(request, llama)


def test_a_counter_without_a_tokenizer_knows_nothing() -> None:
    """Until there is a tokenizer, prompts are estimated, and nothing waits for one."""
    counter = PoolCounter(bytes_max=1 << 20, error_max=0.05)
    assert counter.count(asked(("user", "hi")), 1, 4.0) is None
    assert counter.waiting == 0


def test_lies_do_not_bend_the_template() -> None:
    """A count that no template makes is no lesson, and what one set of tools costs has a bound in number."""
    overhead = TemplateOverhead()
    shape = PromptShape("chat", 2)
    before = overhead.of(shape)
    overhead.saw(shape, 10_000_000)
    overhead.saw(shape, -10_000_000)
    assert overhead.of(shape) == before
    for number in range(TOOLS_MAX + 5):
        overhead.saw(PromptShape("chat", 2, tools=str(number).encode()), 50 + number)
    assert overhead.of(PromptShape("chat", 2, tools=b"0")) is None
    assert overhead.of(PromptShape("chat", 2, tools=b"999")) is not None


def test_errors_are_weighted_by_tokens() -> None:
    """A short prompt's few tokens are no large error; old answers leave the window."""
    errors = CountErrors()
    assert errors.share is None
    errors.saw(10, 20)
    errors.saw(980, 1_000)
    assert errors.share == pytest.approx(30 / 1_020)
    assert errors.worst == 20
    for _ in range(100):
        errors.saw(500, 500)
    assert (errors.share, errors.worst, errors.count) == (0.0, 0, 102)
    errors.saw(-1, 5)
    errors.saw(5, 0)
    assert errors.count == 102


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """A missing, damaged or foreign file is said with its name and the mend."""
    damaged, foreign = tmp_path / "damaged.json", tmp_path / "config.json"
    damaged.write_text(written(tmp_path).read_text()[:5_000])
    foreign.write_text('{"model_type": "llama"}')
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (tmp_path / "none.json", damaged, foreign, tmp_path, pipe, Path("/dev/zero")):
        with pytest.raises(TokenizerError, match=str(path)) as caught:
            load(path)
        assert "tokenizer.json" in str(caught.value)


def test_shapes_of_plain_prompts(llama: FileTokenizer) -> None:
    """Several prompts of one completion are told apart, and TGI's route is counted as well."""
    counter = counter_of(llama)
    several = asked(path="/v1/completions", prompt=["one two", "three"])
    single = asked(path="/generate", inputs="one two")
    for request in (several, single):
        counter.count(request, 1, 4.0)
    catch_up(counter, llama)
    assert known(counter, several).shape.messages == 2
    assert known(counter, single).exact


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "what", "texts": ["one", "two"]}),
        ("/v1/embeddings", {"input": ["one two", "three"]}),
    ],
)
def test_routes_whose_texts_are_not_kept_are_estimated(
    llama: FileTokenizer, path: str, body: dict[str, object]
) -> None:
    """A rerank's query counts with each text, and a batch is many: bytes size them, and nothing waits."""
    counter = counter_of(llama)
    assert counter.count(asked(path=path, **body), 1, 4.0) is None
    assert counter.waiting == 0


def counts_of(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) + 1 for text in texts]


def test_an_engines_own_beginning_is_no_cost_of_a_cut() -> None:
    """Where an engine adds a token to each text, its blocks are not charged for it."""
    assert bias_of(counts_of(PROBES)) == 1.0
