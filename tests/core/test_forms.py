"""Forms: what is read of one's head, wherever it is cut, and what is no form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.body_forms import FIELDS_MAX, SOUND_BYTES_A_TOKEN, sound_tokens
from extproc.core.outcome import Reject
from extproc.core.reading import parse
from extproc.core.request import Request
from extproc.core.routes import ROUTES

ROUTE = ROUTES["/v1/audio/transcriptions"][0]


def form(*fields: tuple[str, bytes], file: bytes = b"RIFF", last: bool = True) -> bytes:
    """As clients' libraries write it: the fields, then the file; `last` has the file after them."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (n.encode(), v) for n, v in fields
    ]
    sound = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n' % file
    return b"".join([*parts, sound] if last else [sound, *parts]) + b"--b--\r\n"


def read(body: bytes) -> Request | Reject:
    return parse(ROUTE, body)


def good(body: bytes) -> Request:
    request = read(body)
    assert isinstance(request, Request), request
    return request


@pytest.mark.parametrize("size", [10, 100_000, 2_000_000])
def test_the_model_stands_before_the_file(size: int) -> None:
    """However large the file is, and wherever what came of it ends."""
    body = form(("model", b"whisper"), ("stream", b"True"), file=b"\0" * size)
    for cut in (len(body), 400):
        request = good(body[:cut])
        assert (request.model, request.stream, request.max_new_tokens) == ("whisper", True, None)
        assert request.prompt_bytes == 0, "a sound's size says nothing of a text's tokens"


def test_what_stands_behind_the_file_is_read_where_it_has_come() -> None:
    """And is as good as absent where not."""
    body = form(("model", b"whisper"), file=b"\0" * 1_000, last=False)
    assert good(body).model == "whisper"
    assert good(body[:500]).model is None


def test_a_field_that_is_cut_does_not_count() -> None:
    """Half a model's name is no model's."""
    body = form(("model", b"whisper-large"))
    assert good(body[: body.index(b"whisper") + 4]).model is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is empty"),
        (b'{"model": "whisper"}', "no multipart/form-data"),
        (b"--\r\n\r\n", "no multipart/form-data"),
        (b"--b", "no multipart/form-data"),
        (b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--\r\n", "has no name"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "has no name"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, said: str) -> None:
    """With what is wrong with it."""
    refused = read(body)
    assert isinstance(refused, Reject)
    assert refused.status == 400
    assert said in refused.message


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(data: bytes, cut: int) -> None:
    """Nothing raises, whatever stands in a form or in its place."""
    for body in (data, form(("model", data), file=data)[:cut], b"--b\r\n" + data):
        request = read(body)
        assert isinstance(request, Request) or request.status == 400


def test_many_fields_are_not_all_looked_at() -> None:
    """A form of fields alone costs no more than its first ones."""
    fields = [(f"f{number}", b"x") for number in range(5 * FIELDS_MAX)]
    assert good(form(("model", b"m"), *fields)).model == "m"
    assert good(form(*fields, ("model", b"m"))).model is None


def test_a_sound_counts_by_its_size() -> None:
    """And the smallest counts as one token."""
    assert [sound_tokens(size) for size in (0, 319, 320, 3_200)] == [1, 1, 1, 10]
    assert SOUND_BYTES_A_TOKEN * 50 == 16_000
