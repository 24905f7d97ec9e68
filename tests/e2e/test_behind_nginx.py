"""A real nginx in front of the gateway, with the lines of docs/deploy.md."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from gateway import KEYS, Gateway, chat_pool, free_ports, wait_for
from one_model import Engine
from processes import Child

pytestmark = pytest.mark.envoy

DOC = Path(__file__).parents[2] / "docs" / "deploy.md"
#: What nginx has around the documented lines; it writes into a folder of the test's alone.
AROUND = """
{user} daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx-errors.log; events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""


def nginx_binary() -> str:
    """Debian has it where a user's PATH does not lead."""
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or shutil.which("nginx")
    if found is None:
        pytest.skip("no nginx; apt-get install nginx")
    return found


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("tiny-chat") as engine:
        yield engine


@pytest.fixture
def port(engine: Engine, tmp_path: Path) -> Iterator[int]:
    """nginx's own, in front of a gateway that takes its word on who asks."""
    binary = nginx_binary()
    with Gateway(
        chat_pool([engine.address], engine="vllm"),
        gateway={"client_address": {"networks": ["127.0.0.1/32"]}},
        identity={"failed_attempts": {"per_minute": 1, "burst": 2}},
    ) as gateway:
        found = re.search(r"```nginx\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
        assert found is not None
        location = found[1].replace("127.0.0.1:8080", f"127.0.0.1:{gateway.port}")
        (port,) = free_ports(1)
        file = tmp_path / "nginx.conf"
        # Its workers would be somebody else, who may not write here.
        user = "user root;" if os.geteuid() == 0 else ""
        text = AROUND.format(folder=tmp_path, port=port, location=location, user=user)
        file.write_text(text, encoding="utf-8")
        nginx = Child("nginx", [binary, "-p", str(tmp_path), "-c", str(file)], tmp_path)
        nginx.start()
        try:
            wait_for("nginx", lambda: healthy(port))
            yield port
        finally:
            nginx.stop()


@contextmanager
def asked(
    port: int, *, key: str = KEYS["acme"], source: str = "127.0.0.1", **body: object
) -> Iterator[http.client.HTTPResponse]:
    """A chat's answer, from an address of this machine; GET /health where there is no body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90, source_address=(source, 0))
    with closing(connection):
        if body:
            headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
            data = json.dumps({"model": "tiny-chat", **body})
            connection.request("POST", "/v1/chat/completions", data, headers)
        else:
            connection.request("GET", "/health")
        with connection.getresponse() as answer:
            yield answer


def healthy(port: int) -> bool:
    with asked(port) as answer:
        return answer.status == 200


def says(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def test_behind_nginx_as_documented(port: int, engine: Engine) -> None:
    """Whole answers and prompts above nginx's own bound pass, a stream's events come one by one, and wrong
    keys slow down the client that shows them."""
    with asked(port, messages=says("hello")) as answer:
        assert (answer.status, json.loads(answer.read())["model"]) == (200, "tiny-chat")
    with asked(port, messages=says("word " * 300_000)) as answer:
        assert answer.status == 200, answer.read()

    engine.flows.clear()
    with asked(port, messages=says("hello"), stream=True) as answer:
        # The engine goes on only when the first event was read here.
        assert b"w0" in answer.readline()
        engine.flows.set()
        assert answer.read().strip().endswith(b"data: [DONE]")

    def guess(source: str) -> int:
        with asked(port, messages=says("hello"), key="wrong", source=source) as answer:
            return answer.status

    assert [guess("127.0.0.2") for _ in range(3)] == [401, 401, 429]
    assert guess("127.0.0.3") == 401
