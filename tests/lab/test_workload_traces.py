"""Reading traces: the formats, their mistakes, and the public files where they are."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from extproc.lab.campaign.streams import traces_folder
from extproc.lab.workload import ClientLimits, WorkloadError, load
from extproc.lab.workload.servegen import weibull_shape

TRACES = traces_folder()
Write = Callable[[str, str], Path]

AZURE = "arrival_s,input_tokens,output_tokens\n0.0,100,10\n1.5,200,20\n\n4.0,300,30\n"
MOONCAKE = "".join(
    json.dumps({"t": 1000 * at, "i": 1030, "o": 5, "h": [7, 8, 100 + at]}) + "\n" for at in range(3)
)
QUANTILES = [0.01, 0.5, 1.0]


def servegen(*clients: object, **header: object) -> str:
    first = {"source": "made up", "window_s": 600, "quantiles": QUANTILES, **header}
    return "\n".join(json.dumps(line) for line in (first, *clients)) + "\n"


def client(
    number: int, *windows: list[object], prompt: tuple[int, int, int] = (10, 20, 40)
) -> dict[str, object]:
    return {"client": number, "w": list(windows), "len": [[0, 1.0, list(prompt), [1, 5, 9]]]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Puts text into a file, gzipped where its name says so."""

    def put(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return put


@pytest.mark.parametrize("name", ["azure_x.csv", "azure_x.csv.gz"])
def test_azure_is_read_plain_and_packed(write: Write, name: str) -> None:
    """Seconds become nanoseconds, empty lines are nothing, the tenant is the trace's name."""
    workload = load(write(name, AZURE), seed=1)
    assert [(a.at_ns, a.prompt_tokens, a.output_tokens) for a in workload.arrivals] == [
        (0, 100, 10),
        (1_500_000_000, 200, 20),
        (4_000_000_000, 300, 30),
    ]
    assert (workload.name, workload.tenants, workload.block_tokens) == ("azure_x", ("azure",), 16)


def test_a_range_of_the_trace_begins_at_zero(write: Write) -> None:
    """What lies outside is left out, and times count from the range's start."""
    workload = load(write("a.csv", AZURE), seed=1, start_s=1, duration_s=2)
    assert [arrival.at_ns for arrival in workload.arrivals] == [500_000_000]
    assert len(load(write("a.csv", AZURE), seed=1, limit=2).arrivals) == 2


def test_a_wanted_rate_stretches_a_trace(write: Write) -> None:
    """Three arrivals in 4 s at 1/s take 2 s."""
    workload = load(write("a.csv", AZURE), seed=1, requests_per_s=1)
    assert [arrival.at_ns for arrival in workload.arrivals] == [0, 750_000_000, 2_000_000_000]


def test_mooncake_keeps_full_blocks_alone(write: Write) -> None:
    """1,030 tokens fill two blocks of 512; the third id stands for a part of one."""
    workload = load(write("mooncake_x.jsonl.gz", MOONCAKE), seed=1)
    assert [(a.at_ns, a.blocks) for a in workload.arrivals] == [
        (at * 1_000_000_000, (7, 8)) for at in range(3)
    ]
    assert workload.block_tokens == 512
    assert workload.stats.uncached_mean == pytest.approx((1030 + 6 + 6) / 3)


def test_mooncakes_own_release_is_read_too(write: Write) -> None:
    """The published file's longer keys mean the same."""
    row = {"timestamp": 2000, "input_length": 600, "output_length": 4, "hash_ids": [3, 4]}
    (arrival,) = load(write("m.jsonl", json.dumps(row)), seed=1).arrivals
    assert (arrival.at_ns, arrival.prompt_tokens, arrival.blocks) == (2_000_000_000, 600, (3,))


def test_servegen_clients_share_the_wanted_rate_as_their_own(write: Write) -> None:
    """A client with nine tenths of the load keeps them; the rate is the asked one, tenants are clients."""
    text = servegen(
        client(3, *([600 * at, 900, 1.0, "E", 0, 0] for at in range(3)), prompt=(1000, 2000, 4000)),
        client(5, *([600 * at, 100, 2.0, "G", 0.25, 0.04] for at in range(3))),
    )
    workload = load(write("s.jsonl", text), seed=1, start_s=300, duration_s=1200, requests_per_s=20)
    counts = Counter(arrival.tenant for arrival in workload.arrivals)
    assert workload.tenants == ("client-3", "client-5")
    assert len(workload.arrivals) == pytest.approx(20 * 1200, rel=0.03)
    assert counts["client-3"] / len(workload.arrivals) == pytest.approx(0.9, abs=0.02)
    times = [arrival.at_ns for arrival in workload.arrivals]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 1200 * 1_000_000_000


def test_servegen_lengths_follow_the_quantiles(write: Write) -> None:
    """Half of the prompts lie below the median, all between the first and the last quantile."""
    text = servegen(client(1, [0, 50, 1.0, "E", 0, 0]))
    prompts = sorted(a.prompt_tokens for a in load(write("s.jsonl", text), seed=1, duration_s=600).arrivals)
    assert (prompts[0], prompts[-1]) == (10, 40)
    assert prompts[len(prompts) // 2] == pytest.approx(20, abs=1)


@pytest.mark.parametrize(
    ("pattern", "cv", "shape"), [("E", 1.0, 0.0), ("G", 2.0, 0.25), ("W", 2.24, 0.5), ("W", 0.5, 2.1)]
)
def test_servegen_gaps_have_their_clients_burstiness(
    write: Write, pattern: str, cv: float, shape: float
) -> None:
    """The family's shape shows in the inter-arrival deviation, also where the scale was rounded to 0."""
    text = servegen(client(1, [0, 100, cv, pattern, shape, 0.0]))
    workload = load(write("s.jsonl", text), seed=2, duration_s=600, requests_per_s=60)
    assert workload.stats.interarrival_cv == pytest.approx(cv, rel=0.1)
    assert len(workload.arrivals) == 36_000


def test_a_weibull_fit_burstier_than_measured_yields_to_the_measure(write: Write) -> None:
    """Shape .16 means a deviation of 36; where 3 was measured, 3 is drawn."""
    text = servegen(client(1, [0, 100, 3.0, "W", 0.16, 0.0]))
    workload = load(write("s.jsonl", text), seed=2, duration_s=600, requests_per_s=60)
    assert workload.stats.interarrival_cv == pytest.approx(3.0, rel=0.15)
    assert weibull_shape(1.0) == pytest.approx(1.0, abs=1e-6)


def test_clients_do_not_burst_together_at_the_windows_edges(write: Write) -> None:
    """Forty bursty clients spread over the window: no tenth of it holds a third of the arrivals."""
    text = servegen(*(client(at, [0, 10, 6.0, "G", 0.03, 0.0]) for at in range(40)))
    workload = load(write("s.jsonl", text), seed=3, duration_s=600)
    tenths = Counter(arrival.at_ns // 60_000_000_000 for arrival in workload.arrivals)
    assert max(tenths.values()) < len(workload.arrivals) / 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "when,what\n", r"a\.csv:1: not a known trace; the first line must be 'arrival_s"),
        ("a.csv", "arrival_s,tokens\n", r"a\.csv:1: the columns must be"),
        ("a.csv", AZURE + "5,x,1\n", r"a\.csv:6: must be seconds and two whole numbers .* not '5,x,1'; mend"),
        ("a.csv", AZURE + "5,1\n", r"a\.csv:6: must be seconds"),
        ("a.csv", AZURE + "nan,1,1\n", r"a\.csv:6: must be seconds"),
        ("a.csv", AZURE + "3,1,1\n", r"a\.csv:6: arrives before the line above .*; sort"),
        ("a.csv", AZURE + "5,0,1\n", r"a\.csv:6: input tokens must be at least 1, not 0; drop"),
        ("a.csv", AZURE + "5,1,0\n", r"a\.csv:6: output tokens must be at least 1"),
        ("a.csv", AZURE.splitlines()[0], r"a\.csv: no arrival in 0 to inf s that fits; widen"),
        ("m.jsonl", MOONCAKE + "{oops", r"m\.jsonl:4: not JSON"),
        ("m.jsonl", MOONCAKE + "[1]", r"m\.jsonl:4: must be a JSON object"),
        ("m.jsonl", MOONCAKE + '{"t":9000,"i":1}', r"m\.jsonl:4: lacks o, h; mend"),
        ("m.jsonl", MOONCAKE + '{"t":9000,"i":1,"o":1,"h":["x"]}', r"m\.jsonl:4: t, i, o, h must be"),
        ("m.jsonl", MOONCAKE + '{"t":9000,"i":1,"o":1,"h":7}', r"m\.jsonl:4: t, i, o, h must be"),
        (
            "s.jsonl",
            servegen(quantiles=[0.5, 0.1]),
            r"s\.jsonl:1: window_s must be above 0 and the quantiles",
        ),
        ("s.jsonl", servegen(window_s="long"), r"s\.jsonl:1: ServeGen's header needs"),
        ("s.jsonl", servegen({"client": 1}), r"s\.jsonl:2: a client needs"),
        (
            "s.jsonl",
            servegen(client(1, [0, 1, 1, "Q", 1, 1])),
            r"s\.jsonl:2: a client needs .*pattern 'Q'",
        ),
        (
            "s.jsonl",
            servegen({"client": 1, "w": [], "len": [[0, 1, [1], [1]]]}),
            r"s\.jsonl:2: len must have 3 quantiles",
        ),
        ("s.jsonl", servegen(client(1)), r"s\.jsonl: no client is active in 0 to 3600 s"),
    ],
)
def test_mistakes_name_file_line_and_mend(write: Write, name: str, text: str, message: str) -> None:
    """Every wrong line is found at its number."""
    with pytest.raises(WorkloadError, match=message):
        load(write(name, text), seed=1)


def test_files_that_cannot_be_read_say_so(write: Write, tmp_path: Path) -> None:
    """Missing, damaged, not text, and a range that runs backwards."""
    with pytest.raises(WorkloadError, match=r"none\.csv: cannot be read \(No such file"):
        load(tmp_path / "none.csv", seed=1)
    damaged = write("a.csv.gz", AZURE + "5.0,100,10\n" * 5000)
    damaged.write_bytes(damaged.read_bytes()[:-12])
    with pytest.raises(WorkloadError, match="damaged gzip"):
        load(damaged, seed=1)
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="not UTF-8"):
        load(tmp_path / "b.csv", seed=1)
    with pytest.raises(WorkloadError, match="duration_s above 0"):
        load(write("a.csv", AZURE), seed=1, duration_s=0)


def trace(name: str) -> Path:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"the trace {name} is not in {TRACES}")
    return path


@pytest.mark.parametrize(
    ("name", "requests", "rate", "cv"),
    [
        ("azure2023_conv.csv.gz", 19_366, 5.53, 1.09),
        ("azure2023_code.csv.gz", 8_819, 2.57, 13.2),
        ("mooncake_conversation.jsonl.gz", 12_031, 3.40, 3.03),
    ],
)
def test_public_traces_are_read_whole(name: str, requests: int, rate: float, cv: float) -> None:
    """As many rows as the traces' README says, at the rate and burstiness that they have."""
    stats = load(trace(name), seed=1).stats
    assert stats.requests == requests
    assert stats.requests_per_s == pytest.approx(rate, rel=0.01)
    assert stats.interarrival_cv == pytest.approx(cv, rel=0.01)


def test_mooncakes_long_prompts_are_dropped_and_counted() -> None:
    """What a replica of 8,192 tokens cannot take is left out; nothing is lost uncounted."""
    workload = load(trace("mooncake_conversation.jsonl.gz"), seed=1, max_total_tokens=8192)
    assert workload.dropped > 1000
    assert workload.dropped + len(workload.arrivals) == 12_031


@pytest.mark.parametrize("name", ["servegen_m-mid_day12.jsonl.gz", "servegen_m-small_day9.jsonl.gz"])
def test_servegen_days_make_many_tenants(name: str) -> None:
    """Ten requests a second by default, a few clients make most of them, the same seed the same hour."""
    hour = {"start_s": 3600, "duration_s": 1200, "limits": ClientLimits()}
    workload = load(trace(name), seed=1, **hour)  # type: ignore[arg-type]  # one mapping for three calls
    assert workload.stats.requests_per_s == pytest.approx(10, rel=0.1)
    counts = Counter(arrival.tenant for arrival in workload.arrivals)
    assert len(counts) > 10
    assert sum(count for _, count in counts.most_common(5)) > 0.7 * len(workload.arrivals)
    assert load(trace(name), seed=1, **hour) == workload  # type: ignore[arg-type]
    assert load(trace(name), seed=2, **hour) != workload  # type: ignore[arg-type]


def test_chance_is_the_seeds_alone(write: Write) -> None:
    """Whatever else draws from `random` changes nothing."""
    path = write("a.csv", AZURE)
    first = load(path, seed=9)
    Random().random()
    assert load(path, seed=9) == first
