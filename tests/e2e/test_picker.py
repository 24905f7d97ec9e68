"""Steersman as the picker of a gateway that is not its own: the real Envoy with streamed bodies both ways."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from echo import KEY, Echo, chunked, head, prompt, raw
from gateway import ASK_S, Gateway, chat_pool, wait_for
from picker_gateway import PickerGateway, asks, connections, models_cluster
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

GRPC_LOG = "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"
SUBSET_SCRIPT = """
function envoy_on_request(handle)
  local hint = handle:headers():get("x-test-subset")
  if hint then
    local list = {}
    for address in string.gmatch(hint, "[^,]+") do
      if address ~= "none" then table.insert(list, address) end
    end
    if hint:sub(1, 5) == "text:" then list = hint:sub(6) end
    handle:streamInfo():dynamicMetadata():set(
      "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset", list)
  end
end
"""


def hints(gateway: PickerGateway, config: dict[str, Any]) -> None:
    """A filter that says the subset that a test's header names; trailers pass, and nothing is retried.

    With retries Envoy 1.40 sends a body that trailers follow twice: its router keeps the body for the next
    attempt where the filter's going on then sends it again.
    """
    manager = connections(config)
    manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"].pop("retry_policy")
    script = {"@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"}
    script["default_source_code"] = {"inline_string": SUBSET_SCRIPT}  # type: ignore[assignment]  # protobuf's JSON
    manager["http_filters"].insert(0, {"name": "envoy.filters.http.lua", "typed_config": script})
    manager["http_protocol_options"] = {"enable_trailers": True}
    models_cluster(config)["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
        }
    }


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with Echo(2) as echo:
        yield echo


@pytest.fixture(scope="module")
def gateway(echo: Echo) -> Iterator[PickerGateway]:
    """Two endpoints, a third that Envoy knows and the service does not."""
    with PickerGateway(chat_pool(echo.addresses), change=hints) as gateway:
        yield gateway


def test_a_body_of_one_byte_chunks_arrives_whole(gateway: PickerGateway, echo: Echo) -> None:
    """Split inside UTF-8 and JSON, by the sender's packets as well; with a length for the engine."""
    for slice_bytes in (65_536, 7):
        assert raw(gateway, chunked(prompt(), 1), slice_bytes=slice_bytes).startswith(b"HTTP/1.1 200")
        _, headers, body = echo.last()
        assert body == prompt()
        assert headers["content-length"] == str(len(body))


def test_trailers_arrive_after_the_body(gateway: PickerGateway, echo: Echo) -> None:
    """A body that trailers end is decided on as any other."""
    answer = raw(gateway, chunked(prompt(), 5, trailers=b"x-sum: 1\r\n"))
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert echo.last()[2] == prompt()


def test_three_megabytes_arrive_whole(gateway: PickerGateway, echo: Echo) -> None:
    """Chunked and with a length, to the byte; 5 MB are refused, and nothing stays in memory."""
    body = prompt(1_500_000)
    assert len(body) > 3_000_000
    assert gateway.call("/v1/completions", body)[0] == 200
    assert echo.last()[2] == body
    assert raw(gateway, chunked(body, 10_000)).startswith(b"HTTP/1.1 200")
    assert echo.last()[2] == body
    # The answer comes before the body, which a client would still be sending.
    assert raw(gateway, head("content-length: 5000000")).startswith(b"HTTP/1.1 413")
    assert gateway.status()["picker"]["bodies_bytes"] == 0


def test_the_destination_in_header_and_metadata_is_one(gateway: PickerGateway, echo: Echo) -> None:
    """The engine sees the header; the key is taken away; a client's own words are not believed."""
    name = "x-gateway-destination-endpoint"
    lies = {name: "9.9.9.9:1", f"{name}-subset": "9.9.9.9:1"}
    assert gateway.call("/v1/completions", prompt(), headers=lies)[0] == 200
    address, headers, _ = echo.last()
    named = headers["x-gateway-destination-endpoint"].split(",")
    assert named[0] == address
    assert sorted(named) == sorted(echo.addresses)
    assert not {"authorization", "x-gateway-destination-endpoint-subset"} & set(headers)


def test_a_subset_is_kept_to(gateway: PickerGateway, echo: Echo) -> None:
    """Each endpoint in turn, as a list and as text; without one both are used."""
    for wanted in (*echo.addresses, f"text:{echo.addresses[1]}", f"{echo.addresses[0]},127.0.0.1:9"):
        for _ in range(4):
            assert gateway.call("/v1/completions", prompt(), headers={"x-test-subset": wanted})[0] == 200
            address, headers, _ = echo.last()
            assert address == headers["x-gateway-destination-endpoint"]
            assert address in wanted
    for nobody in ("none", "127.0.0.1:9", "text:"):
        status, headers, answer = gateway.call("/v1/completions", prompt(), headers={"x-test-subset": nobody})
        assert (status, answer["error"]["code"]) == (503, "no_ready_endpoint"), nobody
        assert headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoint"


def test_usage_comes_from_the_stream(gateway: PickerGateway, echo: Echo) -> None:
    """Tokens, status and the end, without any access log."""
    before = gateway.tenant("acme")
    assert gateway.call("/v1/completions", prompt())[0] == 200
    echo.last()
    wait_for("the end", gateway.quiet)
    after = gateway.tenant("acme")
    assert after["prompt_tokens"] - before["prompt_tokens"] == 11
    assert after["output_tokens"] - before["output_tokens"] == 3
    assert after["ok"] - before["ok"] == 1


def test_a_client_that_leaves_before_its_body_is_whole(gateway: PickerGateway) -> None:
    """What had come is forgotten."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=ASK_S) as connection:
        connection.sendall(chunked(prompt(1_000), 100)[:1_500])
        wait_for("the body", lambda: gateway.status()["picker"]["bodies_bytes"] > 0)
    wait_for("nothing", lambda: gateway.status()["picker"]["bodies_bytes"] == 0)
    wait_for("no stream", lambda: gateway.status()["open_exchanges"] == 0)


def only_metadata(_: PickerGateway, config: dict[str, Any]) -> None:
    override = models_cluster(config)["load_balancing_policy"]["policies"][0]["typed_extension_config"]
    override["typed_config"]["override_host_sources"].pop(1)


def only_header(_: PickerGateway, config: dict[str, Any]) -> None:
    override = models_cluster(config)["load_balancing_policy"]["policies"][0]["typed_extension_config"]
    override["typed_config"]["override_host_sources"].pop(0)


def set_subset(gateway: PickerGateway, config: dict[str, Any]) -> None:
    """Envoy's set_metadata filter names the second upstream, whom the service does not know."""
    only_header(gateway, config)
    filled = {"x-gateway-destination-endpoint-subset": [gateway.upstreams[1]]}
    connections(config)["http_filters"].insert(
        0,
        {
            "name": "envoy.filters.http.set_metadata",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
                "metadata": [{"metadata_namespace": "envoy.lb.subset_hint", "value": filled}],
            },
        },
    )


def test_by_metadata_alone(echo: Echo) -> None:
    """A balancer that reads nothing but the metadata."""
    with PickerGateway(
        chat_pool(echo.addresses[:1]), upstreams=echo.addresses, change=only_metadata
    ) as gateway:
        for _ in range(6):
            assert gateway.call("/v1/completions", prompt())[0] == 200
            assert echo.last()[0] == echo.addresses[0]


def test_by_header_alone_and_a_stranger_of_the_subset_joins(echo: Echo) -> None:
    """With `discover` the endpoint that the gateway names is served; nobody else is then chosen."""
    with PickerGateway(
        chat_pool(echo.addresses[:1]), upstreams=echo.addresses, change=set_subset, picker={"discover": True}
    ) as gateway:
        for _ in range(3):
            assert gateway.call("/v1/completions", prompt())[0] == 200
            assert echo.last()[0] == echo.addresses[1]
        assert gateway.status()["picker"]["joined"] == {"chat": [echo.addresses[1]]}


class Reading:
    """A client that reads a stream in a thread: its tokens in `count`, -1 when it was cut."""

    def __init__(self, gateway: Gateway, tokens: int) -> None:
        self.count = 0
        self.began = threading.Event()
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        self._tokens = tokens
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        body = {"inputs": f"[[sim:out={self._tokens}]]", "parameters": {"max_new_tokens": self._tokens}}
        try:
            self._connection.request("POST", "/generate_stream", json.dumps(body), KEY)
            answer = self._connection.getresponse()
            count = 0
            while line := answer.readline():
                count += line.startswith(b"data:")
                self.began.set()
            self.count = count if count == self._tokens else -1
        except (OSError, http.client.HTTPException):
            self.count = -1
        finally:
            self._connection.close()

    def leave(self) -> None:
        """Close the connection in the middle."""
        with contextlib.suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    def end(self) -> int:
        """Wait for the end; the tokens."""
        self._thread.join(60)
        return self.count


def test_streams_are_followed_to_their_end() -> None:
    """First token, TTFT, who served, tokens; a client that leaves frees its entry and is charged."""
    with (
        Replicas(specs(2, time_scale=1.0)) as replicas,
        PickerGateway(chat_pool(replicas.addresses), limits={"reservation_ttl_s": 3_600}) as gateway,
    ):
        readers = [Reading(gateway, 40) for _ in range(4)]
        assert [reader.end() for reader in readers] == [40] * 4
        wait_for("the ends", gateway.quiet)
        status = gateway.status()
        counts = status["counts"]
        # On a slow machine some count as come before they do.
        assert counts.get("first_token", 0) + counts.get("first_token.overdue", 0) >= 4
        assert counts["settled.ok"] == 4
        assert status["tenants"]["acme"]["output_tokens"] == 160
        assert status["tenants"]["acme"]["ttft_p50_ms"] > 0
        leaver = Reading(gateway, 4_000)
        assert leaver.began.wait(60)
        assert gateway.status()["picker"]["following"] == 1
        leaver.leave()
        wait_for("release", gateway.quiet)  # nothing else would, within an hour
        assert gateway.status()["tenants"]["acme"]["client_gone"] == 1
        assert "expired" not in gateway.counts
        wait_for("the engine", lambda: sum(replicas.state(i)["running"] for i in (0, 1)) == 0)


def test_retries_go_down_the_list_and_the_picker_hears_who_served() -> None:
    """A replica that refuses: the next one answers, the load goes along, the first becomes suspect."""
    with (
        Replicas(specs(2, time_scale=2.0)) as replicas,
        PickerGateway(chat_pool(replicas.addresses)) as gateway,
    ):
        replicas.fault(0, refuse_share=1.0, status=503)
        for _ in range(10):
            status, headers, _ = gateway.call("/generate", {"inputs": "[[sim:out=5]]"})
            assert (status, headers["x-sim-port"]) == (200, replicas.addresses[1].rpartition(":")[2])
        wait_for("the ends", gateway.quiet)
        assert gateway.counts["settled.ok"] == 10, gateway.counts
        assert gateway.counts["moved"] >= 1
        refusing = gateway.endpoint(replicas.addresses[0])
        assert refusing["in_flight_tokens"] == 0
        assert replicas.state(0)["struck"] < 5, "suspect, and last in order from then on"


def test_full_and_gone() -> None:
    """A full pool sheds after the hold, one whose client leaves is forgotten; no ready endpoint is 503."""
    with Replicas(specs(1, time_scale=0.2)) as replicas:
        endpoint = {"address": replicas.addresses[0], "max_concurrent": 1}
        classes = [{"name": "standard", "hold_ms": 400}]
        with PickerGateway(chat_pool([endpoint]), classes=classes, picker={"deadline_ms": 60_000}) as gateway:
            running = Reading(gateway, 400)
            assert running.began.wait(60)
            status, headers, answer = gateway.call("/generate", {"inputs": "[[sim:out=5]]"})
            assert (status, answer["error_type"]) == (429, "overloaded")
            assert headers["x-llm-d-request-dropped-reason"] == "rejected-ttl-expired"
            assert int(headers["retry-after"]) >= 1
            running.leave()
            wait_for("release", gateway.quiet)
            gateway.order("Drain", address=replicas.addresses[0])
            status, headers, answer = gateway.call("/generate", {"inputs": "[[sim:out=5]]"})
            assert (status, answer["error_type"]) == (503, "no_ready_endpoint")
            assert headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoint"


def test_a_slow_body_and_a_long_hold_meet_the_deadline() -> None:
    """Envoy's message_timeout never fires in this mode; the picker's own does."""
    with Replicas(specs(1, time_scale=0.2)) as replicas:
        endpoint = {"address": replicas.addresses[0], "max_concurrent": 1}
        with PickerGateway(chat_pool([endpoint]), picker={"deadline_ms": 500}) as gateway:
            answer = raw(gateway, chunked(prompt(), 5)[:-20])
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"took too long to arrive" in answer, answer
            running = Reading(gateway, 400)
            assert running.began.wait(60)
            status, headers, _ = gateway.call("/generate", {"inputs": "[[sim:out=5]]"})
            assert status == 429, headers
            assert headers["x-llm-d-request-dropped-reason"] == "rejected-ttl-expired"
            assert gateway.status()["held"] == 0
            running.leave()


def logs_too(gateway: PickerGateway, config: dict[str, Any]) -> None:
    """Our access log beside the stream."""
    connections(config)["access_log"] = [
        {
            "name": "envoy.access_loggers.http_grpc",
            "typed_config": {
                "@type": f"type.googleapis.com/{GRPC_LOG}",
                "common_config": {
                    "log_name": "steersman",
                    "grpc_service": {"envoy_grpc": {"cluster_name": "steersman"}},
                    "transport_api_version": "V3",
                    "buffer_size_bytes": 1,
                },
                "additional_response_headers_to_log": ["x-prompt-tokens", "x-generated-tokens"],
            },
        }
    ]


def decides_only(gateway: PickerGateway, config: dict[str, Any]) -> None:
    """The same, and nothing of the response goes to the picker."""
    logs_too(gateway, config)
    mode = asks(config)["processing_mode"]
    mode |= {"response_header_mode": "SKIP", "response_body_mode": "NONE", "response_trailer_mode": "SKIP"}


def test_stream_and_access_log_settle_once() -> None:
    """Whichever comes second is a duplicate."""
    with Replicas(specs(2, time_scale=2.0)) as replicas:
        with PickerGateway(chat_pool(replicas.addresses), change=logs_too) as gateway:
            for _ in range(5):
                assert gateway.call("/generate", {"inputs": "[[sim:out=5]]"})[0] == 200
            wait_for("both", lambda: gateway.counts.get("settled.duplicate", 0) == 5)
            # On a busy machine the client may be gone before the end is told: that is an end too.
            ends = {name for name in gateway.counts if name.startswith("settled.")} - {"settled.duplicate"}
            assert sum(gateway.counts[name] for name in ends) == 5


def test_with_the_access_log_streams_outlive_the_picker() -> None:
    """`settle: access_log` without response phases ends streams with the decision: kill -9 cuts nothing."""
    with Replicas(specs(2, time_scale=0.5)) as replicas:
        with PickerGateway(
            chat_pool(replicas.addresses), picker={"settle": "access_log"}, change=decides_only
        ) as gateway:
            readers = [Reading(gateway, 60) for _ in range(6)]
            assert all(reader.began.wait(60) for reader in readers)
            assert gateway.status()["open_exchanges"] == 0
            gateway.service.kill()
            assert [reader.end() for reader in readers] == [60] * 6
            gateway.start_service()
            wait_for("Envoy", gateway.ready)
            assert gateway.call("/generate", {"inputs": "[[sim:out=5]]"})[0] == 200
            wait_for("the record", lambda: gateway.counts.get("settled.ok", 0) >= 1)
            wait_for("quiet", gateway.quiet)


def test_what_a_followed_stream_costs_when_the_picker_dies() -> None:
    """`settle: stream` carries responses: kill -9 cuts them, SIGTERM waits for them."""
    with (
        Replicas(specs(2, time_scale=0.5)) as replicas,
        PickerGateway(chat_pool(replicas.addresses)) as gateway,
    ):
        readers = [Reading(gateway, 40) for _ in range(3)]
        assert all(reader.began.wait(60) for reader in readers)
        assert gateway.service.stop() == 0
        assert [reader.end() for reader in readers] == [40] * 3
        gateway.start_service()
        wait_for("Envoy", gateway.ready)
        cut = Reading(gateway, 400)
        assert cut.began.wait(60)
        gateway.service.kill()
        assert cut.end() == -1
        gateway.start_service()
        wait_for("Envoy", gateway.ready)


def test_our_own_envoy_is_served_beside_it(echo: Echo) -> None:
    """BUFFERED streams on the same service, unchanged by the section."""
    with Gateway(chat_pool(echo.addresses), picker={"enabled": True, "assume": True}) as gateway:
        assert gateway.call("/v1/completions", prompt(200_000))[0] == 200
        assert echo.last()[2] == prompt(200_000)
        wait_for("the record", lambda: gateway.status()["counts"].get("settled.ok", 0) == 1)
        assert gateway.status()["picker"]["following"] == 0
