"""Attacks on the admin port: names, strangers' pages, paths, sizes, and connections that do not go on."""

from __future__ import annotations

import http.client
import json
import socket
import time

from tests.attack.attacks import first_lines
from tests.attack.report import Report, attack
from tests.attack.stand import TOKENS, Stand

#: Names that are not the port's, though they look like one that is.
NAMES = (
    *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1:80@evil.example"),
    *(
        "127.0.0.1\\evil.example",
        "2130706433.evil.example",
        "evil.example:80",
        "localhost:99999.evil.example",
    ),
)
PATHS = (
    *("/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd"),
    *("/static/js/..%5c..%5cserver.py", "/static/%00", "//evil.example/", "/api/v1/tenants/..%2f..%2fx"),
    *("/api/v1/explain/%3Cscript%3E", "/api/v1/fleet?limit=99999999999999", "/api/v1/fleet?offset=-1"),
    *("/api/v1/decisions?limit=1e3", "/api/v1/tenants?q=%00", "/api/v1/report?by=x&since=y"),
    *("/api/v1/report?since=0001-01-01", "/api/v1/report?by=" + "a" * 5_000, "/api/v1/fleet/" + "x" * 7_000),
)
#: The longest that a request may take to come.
UNFINISHED_S = 40
#: What must never be read through it: a line of our own source, and of a file of the machine.
SECRETS = (b"from __future__", b"root:x:")


class Admin:
    """The admin port, asked by hand."""

    def __init__(self, stand: Stand) -> None:
        self.host, _, port = stand.admin.partition(":")
        self.port = int(port)

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, host: str = "", **headers: str
    ) -> tuple[int | str, bytes]:
        """The status, or the name of what went wrong, and the beginning of the body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host or f"{self.host}:{self.port}")
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read(300_000)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__, b""
        finally:
            connection.close()

    def open(self, data: bytes) -> socket.socket:
        """A connection on which so much was sent."""
        connection = socket.create_connection((self.host, self.port), timeout=10)
        connection.sendall(data)
        return connection


def bearer(name: str) -> str:
    return f"Bearer {TOKENS[name]}"


@attack("the admin port takes no order of a stranger or a stranger's page, and gives no file away")
def admin_port(stand: Stand, full: bool) -> Report:
    report, admin = Report(), Admin(stand)
    drain = f"/api/v1/fleet/{stand.engine.addresses[0]}/drain"
    json_type = "application/json"
    reader = bearer("reader")

    def tried(
        expected: set[int | str], method: str, path: str, body: bytes | None = None, **more: str
    ) -> None:
        status, answer = admin.ask(method, path, body, **more)
        report.answer(status)
        report.holds(status in expected, f"{method} {path[:60]} {more} was answered {status}")
        report.holds(not any(each in answer for each in SECRETS), f"{path[:60]} gave a file away")

    for name in NAMES:
        tried({400, 421}, "GET", "/api/v1/status", host=name, Authorization=reader)
    for more in (
        {"Content_Type": json_type},
        {"Content_Type": json_type, "Authorization": "Bearer x"},
        {"Content_Type": json_type, "Authorization": reader},
        {"Content_Type": json_type, "Authorization": reader, "Origin": "http://evil.example"},
        {"Content_Type": json_type, "Authorization": reader, "Origin": "null"},
        {"Content_Type": "text/plain", "Sec_Fetch_Site": "cross-site", "Authorization": reader},
    ):
        tried({401, 403, 415}, "POST", drain, b"{}", **more)
    tried({401, 403}, "POST", f"{drain}?token={TOKENS['reader']}", b"{}", Content_Type=json_type)
    tried({401, 404, 405}, "GET", drain, X_HTTP_Method_Override="POST")
    for path in PATHS:
        tried({200, 400, 404, 414, 422, "RemoteDisconnected"}, "GET", path, Authorization=reader)
    for body in (b"{" + b" " * 1_000_000 + b"}", b"[" * 20_000):
        tried({400, 403, 413}, "POST", drain, body, Content_Type=json_type, Authorization=reader)
    status, fleet = admin.ask("GET", "/api/v1/fleet", Authorization=reader)
    drained = [each for each in json.loads(fleet)["endpoints"] if each["draining"]]
    report.holds(status == 200 and not drained, f"a replica was drained: {drained}")
    report.served(stand.victim(5))
    return report


@attack("requests to the admin port that do not go on keep nobody from it, and are let go", quick=False)
def half_requests(stand: Stand, full: bool) -> Report:
    report, admin = Report(), Admin(stand)
    head = b"POST /api/v1/fleet/x/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n"
    held = []
    try:
        for number in range(500):
            held.append(admin.open(head if number % 2 else head + b"Content-Type: application/json\r\n\r\n{"))
            report.answer("half sent")
        began_s = time.monotonic()
        status, _ = admin.ask("GET", "/api/v1/status", Authorization=bearer("reader"))
        report.notes.append(f"the status took {time.monotonic() - began_s:.2f} s beside them")
        report.holds(status == 200, f"the status was {status} beside {len(held)} half requests")
        report.served(stand.victim(20))
        if full:
            ended = first_lines(held, within_s=UNFINISHED_S)
            report.notes.append(f"after {UNFINISHED_S} s: {dict(ended)}")
            report.holds(not ended["no answer"], f"{ended['no answer']} half requests are kept for ever")
    finally:
        for each in held:
            each.close()
    return report


@attack("two lengths in one request are one request at the most")
def two_lengths(stand: Stand, full: bool) -> Report:
    report, admin = Report(), Admin(stand)
    second = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for lengths in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n",
    ):
        with admin.open(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + lengths + second) as connection:
            connection.settimeout(3)
            answers = b""
            try:
                while data := connection.recv(65_536):
                    answers += data
            except OSError:
                pass
        report.answer(answers[9:12].decode() or "closed")
        report.holds(
            answers.startswith(b"HTTP/1.1 400") or answers.count(b"HTTP/1.1 2") <= 1,
            f"{lengths!r} was {answers.count(b'HTTP/1.1 2')} requests",
        )
    return report
