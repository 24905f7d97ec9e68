"""What the gateway's edge keeps out and what it lets in: strangers, slow senders, web pages, proxies."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from gateway import KEYS, Gateway, chat_pool, wait_for
from replicas import Replicas, specs

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

MIB = 1024 * 1024
#: More than Envoy's own default, by far less than it waits for a body.
UPLOAD_MS = 2_000
APP = "https://app.example"
CHAT = {"messages": [{"role": "user", "content": "[[sim:out=2]]"}], "max_tokens": 2}
GENERATE = {"inputs": "[[sim:out=2]]", "parameters": {"max_new_tokens": 2}}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Two replicas; a proxy on this machine says who its clients are; a page and TGI's further routes."""
    with (
        Replicas(specs(2)) as replicas,
        Gateway(
            chat_pool(replicas.addresses),
            gateway={
                "upload_timeout_ms": UPLOAD_MS,
                "first_byte_timeout_ms": 1_000,
                "cors": {"origins": [APP]},
                "extra_routes": ["/metrics", "/ping", "/invocations", "/vertex"],
                "client_address": {"networks": ["127.0.0.0/8"]},
            },
            identity={"failed_attempts": {"per_minute": 1, "burst": 2}},
        ) as running,
    ):
        yield running


def begun(
    gateway: Gateway, *headers: str, path: str = "/v1/chat/completions", body: bytes = b""
) -> socket.socket:
    """A POST whose headers are sent, and the beginning of its body."""
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
    head = "\r\n".join([f"POST {path} HTTP/1.1", "host: gw", "content-type: application/json", *headers])
    connection.sendall(f"{head}\r\n\r\n".encode() + body)
    return connection


def answered(connection: socket.socket) -> tuple[int, Any]:
    """What comes back, whatever of the body was sent."""
    answer = http.client.HTTPResponse(connection)
    with contextlib.closing(connection):
        answer.begin()
        return answer.status, json.loads(answer.read())


def test_strangers_are_answered_before_their_bodies_are_read(gateway: Gateway) -> None:
    """Without a key whatever the size; with a wrong one where the body is large or says no length."""
    said = {"content-length: 4000000": b"{", "transfer-encoding: chunked": b"1\r\n{\r\n"}
    for length, body in {**said, "content-length: 20": b"{"}.items():
        status, error = answered(begun(gateway, length, body=body))
        assert (status, error["error"]["code"]) == (401, "invalid_api_key"), length
    for number, (length, body) in enumerate(said.items()):
        wrong = ("authorization: Bearer wrong", f"x-forwarded-for: 10.9.0.{number}")
        assert answered(begun(gateway, length, *wrong, body=body))[0] == 401, length
    known = f"authorization: Bearer {KEYS['acme']}"
    status, error = answered(begun(gateway, "content-length: 4000000", known, path="/nowhere", body=b"{"))
    assert (status, error["error_type"]) == (404, "not_found")


def test_strangers_bodies_take_no_memory(gateway: Gateway) -> None:
    """80 connections that send 4 MiB each without a key: Envoy's heap grew by 300 MiB."""

    def heap() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/memory")
            return int(json.loads(connection.getresponse().read())["allocated"])

    def send() -> None:
        connection = begun(gateway, f"content-length: {4 * MIB}")
        with contextlib.suppress(OSError):  # it is answered and closed meanwhile
            connection.sendall(b"x" * (4 * MIB - 1))
        connections.append(connection)

    before, most = heap(), 0
    connections: list[socket.socket] = []
    threads = [threading.Thread(target=send) for _ in range(80)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, heap())
    statuses = [answered(connection)[0] for connection in connections]
    assert statuses == [401] * 80
    assert most - before < 60 * MIB, (before, most)


def test_clients_read_an_answer_that_comes_before_they_have_sent(gateway: Gateway) -> None:
    """OpenAI's library says what is wrong, not that the connection broke."""
    import openai

    for key, size, error in (
        ("sk-wrong", 3 * MIB, openai.AuthenticationError),
        (KEYS["globex"], 6 * MIB, openai.APIStatusError),
    ):
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)
        with pytest.raises(error) as said:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * size}])
        assert said.value.status_code == (401 if size < 4 * MIB else 413)


def test_a_known_senders_large_body_passes(gateway: Gateway) -> None:
    """To the last byte of the bound, with a length or without."""
    padded = json.dumps({**CHAT, "pad": "x" * 1_500_000}).encode()
    assert gateway.call("/v1/chat/completions", padded)[0] == 200
    pieces = [padded[:700_000], padded[700_000:]]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (*pieces, b""))
    known = f"authorization: Bearer {KEYS['acme']}"
    assert answered(begun(gateway, "transfer-encoding: chunked", known, body=chunks))[0] == 200


def test_a_slow_upload_ends(gateway: Gateway) -> None:
    """However lively it drips: 408 in the route's dialect, from the sender's side within the bound."""
    known = f"authorization: Bearer {KEYS['acme']}"
    small = begun(gateway, "content-length: 1000", known, path="/generate", body=b"{")
    large = begun(gateway, "content-length: 1000000", known)
    over = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.1):
                small.sendall(b" ")
                large.sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert answered(large) == (408, {"error": {
            "message": "the request took too long to arrive",
            "type": "invalid_request_error", "param": None, "code": "request_timeout",
        }})  # fmt: skip
        assert answered(small)[1] == {
            "error": "the request took too long to arrive",
            "error_type": "request_timeout",
        }
    finally:
        over.set()
        thread.join()


def test_a_web_page_may_ask(gateway: Gateway) -> None:
    """A preflight needs no key, answers and refusals say who may read them; another page gets none of it."""
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}

    def preflight(origin: str) -> tuple[int, dict[str, str], Any]:
        return gateway.call(
            "/v1/chat/completions", key=None, method="OPTIONS", headers={"origin": origin, **asks}
        )

    status, headers, _ = preflight(APP)
    assert status == 200
    assert headers["access-control-allow-origin"] == APP
    assert "POST" in headers["access-control-allow-methods"]
    assert "authorization" in headers["access-control-allow-headers"]
    assert headers["access-control-max-age"] == "600"
    status, headers, _ = preflight("https://evil.example")
    assert status == 401
    assert "access-control-allow-origin" not in headers
    for key, expected in ((KEYS["acme"], 200), (None, 401)):
        status, headers, _ = gateway.call("/v1/chat/completions", CHAT, key=key, headers={"origin": APP})
        assert (status, headers["access-control-allow-origin"]) == (expected, APP)
        assert "x-ratelimit-remaining-requests" in headers["access-control-expose-headers"]


def test_what_answers_get_answers_head(gateway: Gateway) -> None:
    """With the same headers and no body, here and at a replica."""
    for path in ("/health", "/", "/ping", "/v1/models", "/info"):
        status, headers, body = gateway.call(path, method="HEAD")
        assert (status, body) == (200, b""), path
        assert int(headers["content-length"]) > 0, path


def test_further_routes_of_tgis(gateway: Gateway) -> None:
    """SageMaker's takes each kind of body, Vertex AI's a list; a replica shows its own metrics."""
    assert gateway.call("/ping", key=None, method="GET")[0] == 200
    assert "generated_text" in gateway.call("/invocations", GENERATE)[2][0]
    assert gateway.call("/invocations", CHAT)[2]["object"] == "chat.completion"
    status, _, body = gateway.call("/vertex", {"instances": [GENERATE, GENERATE]})
    assert (status, len(body["predictions"])) == (200, 2)
    assert gateway.call("/vertex", {"instances": []})[0] == 422
    status, _, text = gateway.call("/metrics", method="GET")
    assert status == 200
    assert b"tgi_request_count" in text
    assert gateway.call("/metrics", key=None, method="GET")[0] == 401
    wait_for("everything settled", gateway.quiet)


def test_a_header_with_an_underscore_is_dropped(gateway: Gateway) -> None:
    """The request is served without it."""
    assert gateway.call("/v1/chat/completions", CHAT, headers={"x_session_id": "1"})[0] == 200
    assert gateway.call("/v1/models", key=None, method="GET", headers={"x_api_key": KEYS["acme"]})[0] == 401


def test_clients_behind_a_proxy_are_told_apart(gateway: Gateway) -> None:
    """By what the last proxy saw, not by what its client said before; one's wrong keys limit that one."""

    def guess(*forwarded: str) -> int:
        headers = {"x-forwarded-for": ", ".join(forwarded)}
        return gateway.call("/generate", GENERATE, key="wrong", headers=headers)[0]

    assert [guess("9.9.9.9", "10.1.0.1") for _ in range(3)] == [401, 401, 429]
    assert guess("8.8.8.8", "10.1.0.1") == 429
    assert guess("10.1.0.1", "10.1.0.2") == 401


def test_a_slow_answer_is_generated_once(gateway: Gateway) -> None:
    """A whole answer that is not here in time is 504 after one try, and one replica was asked."""
    slow = {"inputs": "[[sim:out=6000]]", "parameters": {"max_new_tokens": 6000}}
    before = gateway.tenant("acme")
    status, headers, body = gateway.call("/generate", slow)
    assert (status, body["error_type"]) == (504, "endpoint_timeout")
    assert headers["x-steersman-attempts"] == "1"
    wait_for("its end", lambda: gateway.tenant("acme")["failed"] > before["failed"])
    wait_for("the replica's rest", gateway.quiet)


def test_the_proxy_protocol_and_a_gateway_that_is_full() -> None:
    """The address in the protocol's header is the client's; without one a connection is closed, and so is one
    above `connections_max`. While the service is away, each path is refused as its clients read errors."""
    with (
        Replicas(specs(1)) as replicas,
        ProxiedGateway(
            chat_pool(replicas.addresses),
            gateway={
                "connections_max": 12,
                "client_address": {"networks": ["127.0.0.0/8"], "source": "proxy_protocol"},
            },
            identity={"failed_attempts": {"per_minute": 1, "burst": 2}},
            tenants=[{"name": "acme", "keys": [{"sha256": hash_key(KEYS["acme"])}]}],
        ) as gateway,
    ):
        assert [gateway.ask("10.3.0.1", "/v1/models", "wrong")[0] for _ in range(3)] == [401, 401, 429]
        assert gateway.ask("10.3.0.2", "/v1/models", "wrong")[0] == 401
        # One's own header changes nothing.
        assert gateway.ask("10.3.0.1", "/v1/models", "wrong", "x-forwarded-for: 10.3.0.9")[0] == 429
        assert gateway.ask("10.3.0.1", "/v1/models", KEYS["acme"])[0] == 200
        with contextlib.closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=30)) as bare:
            bare.sendall(b"GET /health HTTP/1.1\r\nhost: gw\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert bare.recv(100) == b""
        with contextlib.ExitStack() as stack:

            def full() -> bool:
                # One of before may still have counted when one of these was opened, and closed it.
                stack.enter_context(proxied(gateway.port, "10.3.0.4"))
                return _closed(gateway.port)

            wait_for("the bound", full)
        wait_for("room again", gateway.ready)
        gateway.service.stop()
        for path, openai in (
            ("/chat/completions", True),
            ("/v1/chat/completions", True),
            ("/openai/v1/models/tiny?x=1", True),
            ("/v1/generate", False),
            ("/generate", False),
        ):
            status, body = gateway.ask("10.3.0.3", path, KEYS["acme"])
            assert status == 503, path
            said = body["error"]["code"] if openai else body["error_type"]
            assert said == "gateway_unavailable", path


def proxied(port: int, source: str) -> socket.socket:
    """A connection that a proxy made for somebody."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(f"PROXY TCP4 {source} 10.0.0.9 1234 80\r\n".encode())
    return connection


def _closed(port: int) -> bool:
    """Whether one more connection is closed at once, be it while its header is sent."""
    try:
        with contextlib.closing(proxied(port, "10.3.0.4")) as more:
            more.settimeout(0.5)
            return more.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


class ProxiedGateway(Gateway):
    """Its harness speaks the PROXY protocol as well."""

    def ready(self) -> bool:
        return self.ask("10.0.0.1", "/health", "")[0] == 200

    def ask(self, source: str, path: str, key: str, *headers: str) -> tuple[int, Any]:
        """A GET through a proxy that says where it comes from."""
        connection = proxied(self.port, source)
        lines = [f"GET {path} HTTP/1.1", "host: gw", f"authorization: Bearer {key}", *headers]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return answered(connection)


@pytest.mark.parametrize("host", ["", "host: gw\r\n"])
def test_http_10_as_proxies_speak_it(gateway: Gateway, host: str) -> None:
    """nginx asks so by default: whole answers and streams come, and the connection ends with them."""
    for stream, last in ((False, b"}"), (True, b"data: [DONE]")):
        body = json.dumps({**CHAT, "model": "tiny-chat", "stream": stream}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.0\r\n{host}content-type: application/json\r\n"
            f"authorization: Bearer {KEYS['acme']}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
            connection.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        top, _, text = answer.partition(b"\r\n\r\n")
        assert b" 200 OK" in top.splitlines()[0], answer
        assert b"transfer-encoding" not in top.lower()
        assert text.strip().endswith(last), answer
