"""Bodies of what is prefilled and generates no tokens: embeddings, reranking, scores, speech.

Owns what counts as one of their inputs, and how much of a prompt each is. Nothing is kept of the texts:
engines that serve these hold no prefix of them worth going back to.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from extproc.core.body_fields import ABSENT, TEXT, given, peek, text_of
from extproc.core.body_messages import ContentPart, bytes_of, medium_of
from extproc.core.errors import Error
from extproc.core.outcome import Reject
from extproc.core.prompts import SEQUENCES_MAX, TOKEN_BYTES, Prompts, TooManyError, elements, read_prompts
from extproc.core.request import Request
from extproc.core.routes import Route


class _Embeddings(msgspec.Struct):
    model: str | None = None
    input: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT


class _Pairs(msgspec.Struct):
    """Reranking and scores, in the words of every engine that has one for it."""

    model: str | None = None
    query: msgspec.Raw = ABSENT
    text_1: msgspec.Raw = ABSENT
    queries: msgspec.Raw = ABSENT
    data_1: msgspec.Raw = ABSENT
    documents: msgspec.Raw = ABSENT
    texts: msgspec.Raw = ABSENT
    text_2: msgspec.Raw = ABSENT
    items: msgspec.Raw = ABSENT
    data_2: msgspec.Raw = ABSENT


class _Document(msgspec.Struct):
    text: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT


#: Texts of one list that are read one by one; of more the size alone counts.
TEXTS_MAX = 32_768

#: Above so many bytes what has no shape of an input is not read for what one engine might make of it.
READ_BYTES_MAX = 65_536
_NUMBERS_AND_LISTS = b"0123456789,[] \t\r\n"

_embeddings = msgspec.json.Decoder(_Embeddings)
_pairs = msgspec.json.Decoder(_Pairs)
_texts = msgspec.json.Decoder(list[str])
_document = msgspec.json.Decoder(_Document)
_parts = msgspec.json.Decoder(list[ContentPart | str])
_documents = msgspec.json.Decoder(list[_Document])


def read_embeddings(route: Route, body: bytes) -> Request | Reject:
    """OpenAI's `input`, vLLM's `messages`, llama.cpp's `content`."""
    fields = _embeddings.decode(body)
    raw = next((each for each in (fields.input, fields.messages, fields.content) if given(each)), None)
    inputs = None if raw is None else inputs_of(raw)
    if inputs is None:
        return Error.UNFIT.reject("'input' is missing")
    return _request(route, fields.model, inputs.count, size_of(inputs), inputs.tokens, inputs.images)


def read_speech(route: Route, body: bytes) -> Request | Reject:
    """A text that is to be spoken; how long the sound will be nobody knows, and it has no tokens."""
    fields = _embeddings.decode(body)
    text = peek(TEXT, fields.input)
    if text is None:
        return Error.UNFIT.reject("'input' is missing" if not given(fields.input) else "'input' is no text")
    return _request(route, fields.model, 1, bytes_of((text,)), None)


def read_pairs(route: Route, body: bytes) -> Request | Reject:
    """A query beside each document: the engine reads it so many times."""
    fields = _pairs.decode(body)
    one = next((r for r in (fields.query, fields.text_1, fields.queries, fields.data_1) if given(r)), None)
    other = next(
        (r for r in (fields.documents, fields.texts, fields.text_2, fields.items, fields.data_2) if given(r)),
        None,
    )
    if one is None:
        return Error.UNFIT.reject("'query' is missing (vLLM's scores: 'text_1' or 'queries')")
    if other is None:
        return Error.UNFIT.reject("'documents' is missing (vLLM's scores: 'text_2'; SGLang's: 'items')")
    queries, documents = inputs_of(one), inputs_of(other)
    if queries is None or documents is None:
        return Error.UNFIT.reject("there is nothing to compare: a list is empty")
    # One query with each of many documents, or as many of the one as of the other.
    count = max(queries.count, documents.count)
    size = size_of(queries) * count // queries.count + size_of(documents) * count // documents.count
    return _request(route, fields.model, count, size, None, queries.images + documents.images)


def _request(
    route: Route, model: str | None, count: int, size: int, tokens: int | None, images: int = 0
) -> Request:
    return Request(
        kind=route.kind,
        dialect=route.dialect,
        model=model or None,
        max_new_tokens=0,
        # What no engine runs at once is run by it in turns.
        sequences=max(1, min(count, SEQUENCES_MAX)),
        prompt_bytes=size,
        prompt_tokens=tokens,
        images=images,
    )


def size_of(inputs: Prompts) -> int:
    """What inputs count as, in bytes of text."""
    return bytes_of(inputs.texts) + inputs.bytes_beside + TOKEN_BYTES * (inputs.tokens or 0)


def inputs_of(raw: msgspec.Raw) -> Prompts | None:
    """A text, texts, documents with a text, token ids, lists of those; None for an empty list.

    Unlike prompts there may be any number: what an engine takes of them is its own to say.
    """
    data = bytes(raw)
    if data[:1] != b"[":
        document = peek(_document, raw) if data[:1] == b"{" else None
        text = text_of(document.text) if document is not None else peek(TEXT, raw)
        images = 0 if document is None else _images(document)
        return Prompts((text,)) if text is not None else Prompts(bytes_beside=len(data), images=images)
    quotes = data.count(b'"')
    if quotes > 2 * TEXTS_MAX and elements(data) >= SEQUENCES_MAX:
        # A million texts are dear to build, and their size is what stands between their quotes.
        return Prompts(count=SEQUENCES_MAX, bytes_beside=max(SEQUENCES_MAX, len(data) - quotes // 2 * 3))
    texts = peek(_texts, raw)
    images = 0
    if texts is None:
        listed = peek(_documents, raw) or ()
        found, images = [text_of(each.text) for each in listed], sum(map(_images, listed))
        known = [text for text in found if text is not None]
        texts = known if known and len(known) == len(found) else None
        if texts is None and len(data) > READ_BYTES_MAX and data.translate(None, _NUMBERS_AND_LISTS):
            # Neither texts nor ids: its size is what counts, and what else it may be is not worth more looks.
            return Prompts(count=max(1, elements(data)), bytes_beside=len(data), images=images)
    if texts is not None:
        return Prompts(tuple(texts), count=len(texts)) if texts else None
    try:
        prompts = read_prompts(raw)
    except TooManyError:
        return Prompts(count=SEQUENCES_MAX, bytes_beside=len(data), images=images)
    return prompts if prompts is None or not images else replace(prompts, images=images)


def _images(document: _Document) -> int:
    """How many images (sounds, films, files) an object holds; one without a text or content is one."""
    if given(document.text):
        return 0
    if not given(document.content):
        return 1
    if bytes(document.content).count(b'"') > 2 * TEXTS_MAX and elements(document.content) >= SEQUENCES_MAX:
        # A million texts are dear to build, and the bound on a body's pieces leaves no such number of images.
        return 0
    parts = peek(_parts, document.content) or ()
    return sum(1 for part in parts if isinstance(part, ContentPart) and medium_of(part))
