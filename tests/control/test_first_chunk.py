"""A real Envoy notes the first chunk of a response, and tells of a stream's to the service that decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from extproc.config.load import loads
from extproc.control.names import event_cluster
from extproc.core import contract
from extproc.wire.stream_events import StreamEvents

if TYPE_CHECKING:  # a conftest is not importable under importlib mode
    Gateway = Any

OVERLOADED = 'data: {"error":"Model is overloaded","error_type":"overloaded"}\\n\\n'
OVERLOADED_OPENAI = 'data:{"error": {"message":"Model is overloaded","http_status_code":422}}\\n\\n'
#: How long an event too many is waited for.
SETTLED_S = 0.15


def events_of(
    gateway: Gateway, request_id: str, *, service: int = 0, of: str = ""
) -> list[tuple[dict[str, str], bytes]]:
    """The events of a reservation, once its request has ended (`of` where that has another id)."""
    gateway.records(of or request_id)
    time.sleep(SETTLED_S)
    events = gateway.services[service].events
    return [each for each in events if each[0][contract.RESERVATION_HEADER] == request_id]


@pytest.mark.envoy
@pytest.mark.parametrize(
    ("headers", "count", "refused"),
    [
        ({"x-test-gap-ms": "20"}, 1, False),
        ({"x-test-comment": "1", "x-test-first-ms": "30"}, 1, False),
        ({"x-test-say": OVERLOADED, "x-test-tokens": "0"}, 1, True),
        ({"x-test-say": OVERLOADED_OPENAI, "x-test-tokens": "0"}, 1, True),
        ({"x-test-say": ":keep-alive\\n\\n" + OVERLOADED, "x-test-tokens": "0"}, 1, True),
        # The engine's own words, quoted in an answer; another error of the engine's is no first token.
        ({"x-test-say": 'data: {"text":"data: {\\"error\\": overloaded"}\\n\\n'}, 1, False),
        (
            {"x-test-say": 'data: {"error":"Input is too long","error_type":"validation"}\\n\\n'},
            0,
            False,
        ),
        ({"x-test-stream-status": "424"}, 0, False),
        ({"x-test-tokens": "0"}, 0, False),
        ({"x-test-event": "-"}, 0, False),
        # A cluster that this Envoy does not have costs the event alone.
        ({"x-test-event": "steersman.log.7"}, 0, False),
    ],
)
def test_a_streams_first_chunk_is_told_once(
    gateway: Gateway, headers: dict[str, str], count: int, refused: bool
) -> None:
    """An empty gRPC message with the reservation's id and the refusal, which the record says as well."""
    answer = gateway.call("/generate_stream", headers=headers)
    assert answer.status == int(headers.get("x-test-stream-status", "200"))
    tokens = int(headers.get("x-test-tokens", "4"))
    assert answer.body.count(b'"index"') == tokens, "the stream comes whole"
    events = events_of(gateway, answer.request_id)
    assert len(events) == count
    for seen, message in events:
        assert message == b""
        assert seen.get(contract.REFUSED_HEADER) == ("1" if refused else None)
        assert "x-forwarded-for" not in seen
    observed = gateway.record(answer.request_id).observed
    assert observed.get(contract.REFUSED_KEY) == (True if refused else None)
    assert (contract.FIRST_CHUNK_KEY in observed) is bool(answer.body.strip(b":\n"))


ROLE = 'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\\n\\n'
TOKEN = 'data: {"choices":[{"delta":{"content":"data: \\\\"error\\\\": {"}}]}\\n\\n'
DEAD = 'data: {"choices":[],"error":{"message":"dead","code":500}}\\n\\n'


@pytest.mark.envoy
@pytest.mark.parametrize(
    "said",
    [
        ROLE,
        ROLE + TOKEN * 3,
        TOKEN + ROLE + ":keep-alive\\n\\n" + TOKEN,
        ROLE + TOKEN + DEAD,
        DEAD,
        TOKEN + 'error: {"code":500}\\n\\n',
        TOKEN.replace("data: {", "data:{") * 2 + "data: [DONE]\\n\\n",
        "event: message\\nid: 7\\n" + TOKEN + "event: completion\\n" + TOKEN,
        "event: ping\\ndata: {}\\n\\n" + "event: response.output_text.delta\\n" + TOKEN,
        "event: message\\n" + TOKEN + 'event: error\\ndata: {"message":"dead"}\\n\\n',
        TOKEN + "data: " + "x" * 6_000 + "\\n\\n" + TOKEN,
        TOKEN + 'data: {"error":\\ndata: {"code":500}}\\n\\n',
        TOKEN + 'data: {"choices":[\\r\\ndata: {"finish_reason":null}]}\\r\\n\\r\\n' + TOKEN,
        TOKEN + 'data: {"error":{"code":500}}',
        TOKEN + 'data: {"choices":[{"finish_reason":null},{"finish_reason":null}]}\\n\\n' + TOKEN,
        TOKEN + 'data: {"choices":[{"finish_reason":"error"}]}\\n\\n',
        TOKEN + 'data: {"meta_info":{"finish_reason":{"type":"abort","status_code":400}}}\\n\\n',
        'data: {"a":1}\\ndata: {"a":2}\\ndata: {"a":3}\\n\\n' + TOKEN,
    ],
)
@pytest.mark.parametrize("tokens", [0, 4])
def test_envoy_counts_as_the_picker_does(gateway: Gateway, said: str, tokens: int) -> None:
    """The script and wire/stream_events.py find the same events, error and end in a stream."""
    headers = {"x-test-say": said, "x-test-tokens": str(tokens)}
    answer = gateway.call("/v1/chat/completions", b'{"stream": true}', headers=headers)
    found = StreamEvents()
    for chunk in (answer.body[at : at + 100] for at in range(0, len(answer.body), 100)):
        found.saw(chunk)
    found.ended()
    observed = gateway.record(answer.request_id).observed
    assert observed.get(contract.EVENTS_KEY, 0) == found.count
    assert observed.get(contract.ERROR_KEY, "") == found.error
    assert observed.get(contract.DONE_KEY, False) is found.done is True


@pytest.mark.envoy
@pytest.mark.parametrize(("headers", "served"), [({}, "a"), ({"x-test-status-a": "503"}, "b")])
def test_who_answers_is_told(gateway: Gateway, headers: dict[str, str], served: str) -> None:
    """After a retry it is another than the first named; the client is not told where it was served."""
    answer = gateway.call("/generate_stream", headers={"x-test-endpoints": "a,b", **headers})
    ((seen, _),) = events_of(gateway, answer.request_id)
    assert seen[contract.SERVED_HEADER] == gateway.services[0].addresses[served]
    assert contract.SERVED_HEADER not in answer.headers
    refused = gateway.call(headers={"x-test-reject": "429"})
    assert contract.SERVED_HEADER not in refused.headers


@pytest.mark.envoy
def test_a_whole_answer_is_not_told(gateway: Gateway) -> None:
    """Its first chunk is its last; the record says as much."""
    answer = gateway.call()
    assert events_of(gateway, answer.request_id) == []
    assert contract.FIRST_CHUNK_KEY in gateway.record(answer.request_id).observed


@pytest.mark.envoy
def test_a_client_cannot_tell(gateway: Gateway) -> None:
    """Law 7: the event's path is a path like any other, and its headers are nobody's but the script's."""
    forged = {contract.RESERVATION_HEADER: "forged", contract.REFUSED_HEADER: "1", "te": "trailers"}
    for extra in ({"content-type": "application/grpc"}, {contract.CLUSTER_HEADER: "steersman"}):
        path = f"/{contract.EVENT_SERVICE}/{contract.EVENT_METHOD}"
        answer = gateway.call(path, b"\0\0\0\0\0", headers={**forged, **extra})
        assert events_of(gateway, "forged", of=answer.request_id) == []
        assert gateway.upstreams["a"].requests[-1]["x-request-id"] == answer.request_id
    answer = gateway.call("/generate_stream", headers=forged)
    ((seen, _),) = events_of(gateway, answer.request_id)
    assert contract.REFUSED_HEADER not in seen


@pytest.mark.envoy
def test_the_named_service_alone_is_told(
    start_gateway: Callable[..., Any], envoy: str, tmp_path: Path
) -> None:
    """With two services each has a cluster of its own, and only the decision's is called."""
    with start_gateway(envoy, tmp_path, services=2) as gateway:
        for i in range(2):
            headers = {"x-test-event": f"steersman.log.{i}"}
            request_id = gateway.call("/generate_stream", headers=headers).request_id
            assert [len(events_of(gateway, request_id, service=each)) for each in (i, 1 - i)] == [1, 0]


@pytest.mark.parametrize(
    ("services", "listen", "cluster"),
    [
        ("", "10.0.0.1:1", "steersman"),
        ("10.0.0.1:1", "0.0.0.0:9", "steersman"),
        ("10.0.0.1:1, 10.0.0.2:1", "10.0.0.2:1", "steersman.log.1"),
        ("'unix:/run/a', 'unix:/run/b'", "'unix:/run/a'", "steersman.log.0"),
        ("127.0.0.1:1, 127.0.0.1:2", "127.0.0.1:9, '127.0.0.1:2'", "steersman.log.1"),
        # Every address of this host; 192.0.2.x is nobody's.
        ("192.0.2.1:1, 127.0.0.1:1", "0.0.0.0:1", "steersman.log.1"),
        ("192.0.2.1:1, 127.0.0.1:2", "0.0.0.0:1", ""),
        ("127.0.0.1:1, 127.0.0.2:1", "0.0.0.0:1", ""),
        ("192.0.2.1:1, 'unix:/run/a'", "127.0.0.1:1", ""),
    ],
)
def test_a_service_knows_its_own_cluster(services: str, listen: str, cluster: str) -> None:
    """By where it listens; where that leaves a doubt, by none."""
    config = loads(
        f"gateway: {{auth: none, services: [{services}]}}\nservice: {{listen: [{listen}]}}\n"
        "pools: [{name: a, models: [m], endpoints: [{address: 10.0.0.3:1}]}]"
    )
    assert event_cluster(config) == cluster
