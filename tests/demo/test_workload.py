"""workload.py: traces are read or refused by line; generated ones are seeded; each says what it is."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from extproc.demo.workload import BATCH, CHAT, TRIAL, TraceError, generated, read_trace, workload

HEAD = "arrival_s,input_tokens,output_tokens\n"


def trace(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_trace_is_read_plain_or_compressed(tmp_path: Path, name: str) -> None:
    """Columns in any order; long prompts are the batch tenant's; what lies beyond the span is left."""
    rows = "output_tokens,arrival_s,x,input_tokens\n5,0.5,,10\n6,2,,5000\n\n7,9999,,1\n"
    work = read_trace(trace(tmp_path, rows, name))
    assert [(a.at_s, a.tenant, a.input_tokens, a.output_tokens) for a in work.arrivals] == [
        (0.5, CHAT, 10, 5),
        (2.0, BATCH, 5000, 6),
    ]
    assert work.span_s == 3.0
    assert work.source == f"real trace {name}, first 3 s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: has no column arrival_s, input_tokens, output_tokens"),
        ('{"t":0}\n', ":1: has no column arrival_s"),
        (HEAD, ": holds no rows within its first 600 s"),
        (HEAD + "0,1,1\n5,x,1\n", ":3: input_tokens 'x' is no number from 1"),
        (HEAD + "0,1,0\n", ":2: output_tokens '0' is no number from 1"),
        (HEAD + "-1,1,1\n", ":2: arrival_s '-1' is no number of seconds"),
        (HEAD + "nan,1,1\n", ":2: arrival_s 'nan' is no number of seconds"),
        (HEAD + "0,1\n", ":2: has 2 columns, too few"),
        (HEAD + "5,1,1\n4,1,1\n", ":3: arrival_s 4 is before the line above (5)"),
    ],
)
def test_a_bad_trace_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    """Nobody has to look for the mistake."""
    path = trace(tmp_path, text)
    with pytest.raises(TraceError) as raised:
        read_trace(path)
    assert f"{path}{message}" in str(raised.value)


def test_every_fourth_short_row_of_a_trace_is_the_trials(tmp_path: Path) -> None:
    """By its line, so that the same trace is always the same tenants'; long prompts stay the batch's."""
    rows = "".join(f"{n},{5_000 if n == 2 else 10},1\n" for n in range(8))
    tenants = [arrival.tenant for arrival in read_trace(trace(tmp_path, HEAD + rows)).arrivals]
    assert tenants == [CHAT, CHAT, BATCH, CHAT, CHAT, CHAT, TRIAL, CHAT]


def test_what_is_no_text_or_no_gzip_or_not_there_is_said_so(tmp_path: Path) -> None:
    """The three ways in which a file is the wrong one."""
    binary = tmp_path / "b.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="is not text"):
        read_trace(binary)
    not_gzip = trace(tmp_path, HEAD, "t.csv").rename(tmp_path / "t.csv.gz")
    with pytest.raises(TraceError, match="cannot be read: Not a gzipped file"):
        read_trace(not_gzip)
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress((HEAD + "0,1,1\n" * 1000).encode())[:-9])
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(cut)
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.csv")


def test_without_a_trace_one_is_generated_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a fresh clone with nothing beside it; the same seed gives the same arrivals."""
    monkeypatch.chdir(tmp_path)
    work = workload(None, seed=3)
    assert work.source.startswith("generated")
    assert work == generated(seed=3)
    assert work != generated(seed=4)
    assert {arrival.tenant for arrival in work.arrivals} == {CHAT, TRIAL, BATCH}
    assert list(work.arrivals) == sorted(work.arrivals, key=lambda a: a.at_s)


def test_a_trace_beside_the_checkout_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`../shared/traces` needs no option; the public data's licence is said."""
    (tmp_path / "shared" / "traces").mkdir(parents=True)
    (tmp_path / "clone").mkdir()
    trace(tmp_path / "shared" / "traces", HEAD + "0,1,1\n", "azure2023_conv.csv.gz")
    monkeypatch.chdir(tmp_path / "clone")
    assert "CC-BY-4.0" in workload(None, seed=1).source
