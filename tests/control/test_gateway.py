"""A real Envoy does what the rendered configuration is meant to make it do."""

from __future__ import annotations

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from extproc.core import contract

if TYPE_CHECKING:  # a conftest is not importable under importlib mode
    Gateway = Any

pytestmark = pytest.mark.envoy

MEBI = 1024 * 1024
#: How late a health answer comes: the two checks that Envoy's own patience would allow are over by then.
LATE_S = 3.0
BODY_BYTES_MAX = 4 * MEBI  # conftest's configuration


def test_the_decisions_endpoint_serves(gateway: Gateway) -> None:
    """override_host reads the metadata that the decision wrote."""
    for name in ("a", "b", "a"):
        answer = gateway.call(headers={"x-test-endpoints": name})
        assert answer.json["from"] == name
        assert answer.headers["x-steersman-endpoint"] == gateway.service.addresses[name]
        assert answer.headers["x-steersman-pool"] == "chat"
        assert answer.headers["x-steersman-reason"] == "because"
        assert answer.headers["server"] == "steersman"


@pytest.mark.parametrize("status", ["429", "502", "503", "504"])
def test_a_refusal_goes_to_the_second_endpoint(gateway: Gateway, status: str) -> None:
    """Retries walk the decision's list."""
    answer = gateway.call(headers={"x-test-endpoints": "a,b", "x-test-status-a": status})
    assert (answer.status, answer.json["from"]) == (200, "b")
    assert answer.headers["x-steersman-attempts"] == "2"
    assert gateway.record(answer.request_id).common.upstream_request_attempt_count == 2


def test_a_refused_connection_goes_to_the_second_endpoint(gateway: Gateway) -> None:
    """A replica that still loads its weights has no open port."""
    answer = gateway.call(headers={"x-test-endpoints": "refused,b"})
    assert (answer.status, answer.json["from"]) == (200, "b")


def test_an_engines_own_error_passes(gateway: Gateway) -> None:
    """422 is the client's to see, as the engine said it."""
    answer = gateway.call(headers={"x-test-status-a": "422"})
    assert (answer.status, answer.json) == (422, {"error": "no", "error_type": "overloaded"})


def test_an_endpoint_that_is_no_member_is_passed_over(gateway: Gateway) -> None:
    """Metadata cannot make Envoy connect to a stranger."""
    answer = gateway.call(headers={"x-test-endpoints": "stranger,b"})
    assert (answer.status, answer.json["from"]) == (200, "b")


def test_forged_headers_change_nothing(gateway: Gateway) -> None:
    """Neither service nor upstream sees them, and the request goes where the decision says."""
    forged = {
        **dict.fromkeys(contract.STRIPPED_HEADERS, "forged"),
        contract.CLUSTER_HEADER: "steersman",
        contract.LB_ENDPOINTS_KEY: gateway.service.addresses["b"],
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-request-id": "forged",
        "authorization": "Bearer secret",
    }
    answer = gateway.call(headers={**forged, "x-test-endpoints": "a"})
    assert (answer.status, answer.json["from"]) == (200, "a")
    assert answer.request_id != "forged"
    seen, forwarded = gateway.service.decided[-1], gateway.upstreams["a"].requests[-1]
    assert "forged" not in seen.values()
    assert seen["authorization"] == "Bearer secret"
    leaked = {"authorization", "x-envoy-internal", *contract.STRIPPED_HEADERS} & forwarded.keys()
    assert not leaked


def test_a_stream_is_accounted_without_python_seeing_it(gateway: Gateway) -> None:
    """Ticket, token counts and the first chunk's time come back in the record."""
    headers = {"x-test-tokens": "6", "x-test-first-ms": "150", "x-test-gap-ms": "5", "x-test-comment": "1"}
    answer = gateway.call("/generate_stream", headers=headers)
    first_at = next(at for at, chunk in answer.chunks if b"data:" in chunk)
    record = gateway.record(answer.request_id)
    assert record.metadata(contract.DECISION_NAMESPACE)["ticket"] == f"ticket-of-{answer.request_id}"
    observed = record.observed
    assert observed[contract.INDEX_KEY] == 6
    assert observed[contract.PROMPT_TOKENS_KEY] == 9
    assert observed[contract.GENERATED_TOKENS_KEY] == 6
    assert isinstance(observed[contract.FIRST_CHUNK_KEY], str), "microseconds do not fit a float's mantissa"
    # The comment that comes 150 ms earlier is not the first token.
    assert -5_000 < first_at * 1e6 - int(observed[contract.FIRST_CHUNK_KEY]) < 100_000
    assert len(answer.chunks) >= 4, "the stream was not held back"


def test_a_streams_last_event_may_be_large(gateway: Gateway) -> None:
    """TGI repeats the whole text there; Envoy's default would skip an event of 8 KiB."""
    answer = gateway.call("/generate_stream", headers={"x-test-pad": "200000"})
    assert gateway.record(answer.request_id).observed[contract.GENERATED_TOKENS_KEY] == 4


def test_an_openai_stream_is_accounted_by_its_usage(gateway: Gateway) -> None:
    """The extra chunk before [DONE]."""
    answer = gateway.call("/v1/chat/completions", b'{"stream": true}')
    observed = gateway.record(answer.request_id).observed
    assert (observed[contract.PROMPT_TOKENS_KEY], observed[contract.COMPLETION_TOKENS_KEY]) == (11, 4)


def test_a_whole_answer_is_accounted(gateway: Gateway) -> None:
    """OpenAI's usage from the body; TGI's details from the body, and its headers."""
    answer = gateway.call("/v1/chat/completions")
    observed = gateway.record(answer.request_id).observed
    assert (observed[contract.PROMPT_TOKENS_KEY], observed[contract.COMPLETION_TOKENS_KEY]) == (11, 7)
    record = gateway.record(gateway.call().request_id)
    assert record.observed[contract.GENERATED_TOKENS_KEY] == 5
    headers = record.entry.response.response_headers
    assert headers[contract.PROMPT_TOKENS_HEADER] == "9"
    assert headers[contract.GENERATED_TOKENS_HEADER] == "5"


def test_a_large_answer_passes_and_is_accounted(gateway: Gateway) -> None:
    """Larger than any request may be; json_to_metadata would fail it at a small buffer limit."""
    answer = gateway.call(headers={"x-test-pad": str(2 * BODY_BYTES_MAX)})
    assert (answer.status, len(answer.json["pad"])) == (200, 2 * BODY_BYTES_MAX)
    assert gateway.record(answer.request_id).observed[contract.COMPLETION_TOKENS_KEY] == 4


def test_a_running_request_reports_itself(gateway: Gateway) -> None:
    """Periodic records, before the first byte and while it streams, renew a reservation."""
    headers = {"x-test-first-ms": "1300", "x-test-tokens": "10", "x-test-gap-ms": "100"}
    answer = gateway.call("/generate_stream", headers=headers)
    *periodic, last = gateway.records(answer.request_id)
    assert len(periodic) >= 2
    assert all(record.periodic for record in periodic)
    assert not last.periodic
    tickets = {record.metadata(contract.DECISION_NAMESPACE)["ticket"] for record in (*periodic, last)}
    assert tickets == {f"ticket-of-{answer.request_id}"}
    assert contract.FIRST_CHUNK_KEY not in periodic[0].observed
    assert 1 <= periodic[-1].observed[contract.INDEX_KEY] <= 10


def test_a_client_that_leaves_is_told_of_at_once(gateway: Gateway) -> None:
    """With what it had received until then."""
    with gateway.gate("a"):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        headers = {"x-test-tokens": "9", "x-test-gap-ms": "20", "x-test-gate": "1"}
        connection.request("POST", "/generate_stream", b"{}", headers)
        response = connection.getresponse()
        response.read1(64)
        time.sleep(0.1)
        response.close()
        connection.close()
    record = gateway.record(response.headers["x-request-id"])
    assert record.common.response_flags.downstream_connection_termination
    assert record.observed[contract.INDEX_KEY] < 9


@pytest.mark.parametrize("status", ["200", "503"])
def test_a_large_prompt_passes_and_can_be_retried(gateway: Gateway, status: str) -> None:
    """3 MB, which is above Envoy's default of 1 MiB."""
    answer = gateway.call(body=b"x" * 3_000_000, headers={"x-test-status-a": status})
    assert (answer.status, answer.json["bytes"]) == (200, 3_000_000)


def test_the_body_bound_is_exact(gateway: Gateway) -> None:
    """At the bound it passes, one byte above is 413 in the route's dialect."""
    assert gateway.call(body=b"x" * BODY_BYTES_MAX).status == 200
    too_large = b"x" * (BODY_BYTES_MAX + 1)
    message = f"the body is too large; at most {BODY_BYTES_MAX} bytes"
    answer = gateway.call(body=too_large)
    assert (answer.status, answer.json) == (413, {"error": message, "error_type": "validation"})
    answer = gateway.call("/v1/chat/completions", too_large)
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "body_too_large"}
    assert (answer.status, answer.json) == (413, {"error": error})
    assert answer.headers["content-type"] == "application/json"


def test_the_services_own_answer_is_not_reworded(gateway: Gateway) -> None:
    """Only Envoy's texts are put into a dialect."""
    answer = gateway.call("/v1/chat/completions", headers={"x-test-reject": "429"})
    assert (answer.status, answer.json, answer.headers["retry-after"]) == (429, {"mine": True}, "7")


def test_without_a_decision_it_is_503(gateway: Gateway) -> None:
    """Closed, by default; and the direct response does not fire before the decision (other tests)."""
    answer = gateway.call("/v1/completions", headers={"x-test-undecided": "1"})
    assert (answer.status, answer.json["error"]["code"]) == (503, "gateway_unavailable")
    assert answer.headers["retry-after"] == "1"


def test_a_request_may_be_held(gateway: Gateway) -> None:
    """Longer than decision_timeout_ms (1 s here), once the service has asked for it."""
    answer = gateway.call(headers={"x-test-hold-ms": "1300"})
    assert answer.status == 200


def test_upgrades_are_refused_and_underscores_dropped(gateway: Gateway) -> None:
    """No WebSocket passes ext_proc; x_tenant is not x-tenant, and nobody behind Envoy sees it."""
    decided = len(gateway.service.decided)
    assert gateway.call(headers={"connection": "upgrade", "upgrade": "websocket"}).status == 403
    assert len(gateway.service.decided) == decided
    answer = gateway.call(headers={"x_tenant": "root", "x-seen": "1"})
    assert answer.status == 200
    assert "x_tenant" not in gateway.service.decided[-1]
    assert "x-seen" in gateway.service.decided[-1]


def test_a_path_has_one_spelling(gateway: Gateway) -> None:
    """What the service decides on is what the engine gets."""
    assert gateway.call("//v1/./%63ompletions").status == 200
    assert gateway.service.decided[-1][":path"] == "/v1/completions"


def test_a_large_body_is_asked_for_before_it_is_read(gateway: Gateway) -> None:
    """By its declared length, or where it declares none; a small one is decided on in one call."""
    asked = len(gateway.service.asked)
    assert gateway.call(body=b"x" * 65_536).status == 200
    assert len(gateway.service.asked) == asked
    assert gateway.call(body=b"x" * 65_537).status == 200
    assert gateway.call(body=iter([b"x" * 10, b"y" * 10])).status == 200
    assert len(gateway.service.asked) == asked + 2


def test_a_slow_sender_holds_no_place_at_the_service(gateway: Gateway) -> None:
    """The service is called when the body is whole."""
    decided = len(gateway.service.decided)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.putrequest("POST", "/generate")
    connection.putheader("content-length", "2")
    connection.endheaders(b"{")
    time.sleep(0.1)
    assert len(gateway.service.decided) == decided
    connection.send(b"}")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_restarted_service_is_used_again(gateway: Gateway) -> None:
    """And until then 503; what streams already runs on (law: decide, then leave)."""
    running: list[Any] = []
    headers = {"x-test-tokens": "5", "x-test-gap-ms": "20", "x-test-gate": "1"}
    stream = threading.Thread(
        target=lambda: running.append(gateway.call("/generate_stream", headers=headers))
    )
    before = len(gateway.upstreams["a"].requests)
    with gateway.gate("a"):
        stream.start()
        while len(gateway.upstreams["a"].requests) == before:
            time.sleep(0.005)
        gateway.loop.run(gateway.service.stop())
        answer = gateway.call()
        assert (answer.status, answer.json["error_type"]) == (503, "gateway_unavailable")
        gateway.loop.run(gateway.service.start())
        deadline = time.monotonic() + 60.0
        while gateway.call().status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    stream.join()
    assert running[0].body.count(b"data: ") == 5


def test_one_of_two_services_may_die(envoy: str, tmp_path: Path, start_gateway: Any) -> None:
    """Health checks notice after a while; until then retries find the other one."""
    with start_gateway(envoy, tmp_path, services=2) as gateway:
        for _ in range(10):
            assert gateway.call().status == 200
        gateway.loop.run(gateway.services[1].stop())
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            assert gateway.call().status == 200


@pytest.mark.parametrize(("first_ms", "idle_ms"), [(1000, 1000), (400, 1600)])
def test_a_silent_endpoint_is_cut_off(
    envoy: str, tmp_path: Path, start_gateway: Any, first_ms: int, idle_ms: int
) -> None:
    """With either timer: before the first byte with 504, in a stream by ending it."""
    extra = f"  first_byte_timeout_ms: {first_ms}\n  stream_idle_timeout_ms: {idle_ms}\n  retries: 0"
    with start_gateway(envoy, tmp_path, extra=extra) as gateway, ThreadPoolExecutor(3) as calls:
        # Side by side: each of them mostly waits.
        late = calls.submit(gateway.call, "/v1/completions", headers={"x-test-first-ms": "1200"})
        # Longer as a whole than either timeout, and never silent for long.
        headers = {"x-test-tokens": "12", "x-test-gap-ms": "150"}
        lively = calls.submit(gateway.call, "/generate_stream", headers=headers)
        with pytest.raises(http.client.IncompleteRead):
            gateway.call("/generate_stream", headers={"x-test-tokens": "2", "x-test-gap-ms": "5000"})
        answer = late.result()
        assert (answer.status, answer.json["error"]["code"]) == (504, "endpoint_timeout")
        assert lively.result().body.count(b"data:") == 12


def test_a_silent_try_goes_to_the_second_endpoint(envoy: str, tmp_path: Path, start_gateway: Any) -> None:
    """A stuck engine is left for another."""
    extra = "  first_byte_timeout_ms: 1000\n  stream_idle_timeout_ms: 1000"
    with start_gateway(envoy, tmp_path, extra=extra) as gateway:
        answer = gateway.call(headers={"x-test-endpoints": "a,b", "x-test-stuck-a": "1"})
        assert (answer.status, answer.json["from"]) == (200, "b")


def test_open_means_on_without_a_decision(envoy: str, tmp_path: Path, start_gateway: Any) -> None:
    """To the pool's endpoints by Envoy's balancer, never to one that a client names."""
    with start_gateway(envoy, tmp_path, extra="  failure_mode: open") as gateway:
        gateway.loop.run(gateway.service.stop())
        wish = {
            contract.LB_ENDPOINTS_KEY: gateway.service.addresses["b"],
            contract.CLUSTER_HEADER: "steersman",
        }
        answers = [gateway.call(headers=wish) for _ in range(30)]
        assert {answer.status for answer in answers} == {200}
        assert {answer.json["from"] for answer in answers} == {"a", "b"}
        assert not gateway.service.records, "nothing to settle: no record"


def test_a_late_health_answer_costs_no_request(gateway: Gateway) -> None:
    """A service whose loop is busy for three seconds is late, not dead: nobody gets 503 for it."""
    gateway.service.late_from_s, gateway.service.late_s = 0.0, LATE_S
    answered: list[int] = []
    until_s = time.monotonic() + 20.0
    while time.monotonic() < until_s:
        answered.append(gateway.call().status)
        if gateway.service.late_from_s and time.monotonic() > gateway.service.late_from_s + LATE_S + 1.0:
            break
        time.sleep(0.02)
    assert gateway.service.late_from_s, "nobody has asked"
    assert set(answered) == {200}
