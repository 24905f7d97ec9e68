"""One message over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from extproc.config.alerts import Webhook
from extproc.observe.alerts.post import SecretError, Secrets, headers, post, secrets_of, signature

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def serve(handle: Handle, ask: Callable[[str], Awaitable[int]]) -> int:
    """Run a server of one kind, and ask it."""

    async def run() -> int:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await ask(f"http://127.0.0.1:{port}/hook?x=1")

    return asyncio.run(run())


def test_a_post_is_whole_and_its_answers_status_comes_back() -> None:
    """Method, path, length, headers and body as given."""
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head + await reader.readexactly(2))
        writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    status = serve(handle, lambda url: post(url, b"{}", {"x-a": "b"}, timeout_s=5.0))
    assert status == 202
    lines = seen[0].split(b"\r\n")
    assert lines[0] == b"POST /hook?x=1 HTTP/1.1"
    assert lines[1].startswith(b"host: 127.0.0.1:")
    assert {b"content-length: 2", b"connection: close", b"x-a: b"} <= set(lines)
    assert lines[-1] == b"{}"


@pytest.mark.parametrize("answer", [b"", b"hello\r\n", b"HTTP/1.1 yes\r\n", b"x" * 10_000, b"HTTP/2 200\r\n"])
def test_what_is_no_answer_is_an_error(answer: bytes) -> None:
    """Closed at once, not HTTP, or without an end."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    with pytest.raises(OSError, match=r"no HTTP|without an answer"):
        serve(handle, lambda url: post(url, b"{}", {}, timeout_s=5.0))


def test_a_receiver_that_says_nothing_costs_the_timeout_and_no_more() -> None:
    """Whatever it does with the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    with pytest.raises(TimeoutError):
        serve(handle, lambda url: post(url, b"{}", {}, timeout_s=0.1))


def test_the_signature_is_of_time_and_body() -> None:
    """So that nobody can send an old message again with a new time."""
    given = headers(b"{}", Secrets(signing=b"secret", bearer="token"), timestamp_s=7)
    expected = hmac.new(b"secret", b"7.{}", hashlib.sha256).hexdigest()
    assert given["x-steersman-signature"] == f"sha256={expected}"
    assert given["x-steersman-timestamp"] == "7"
    assert given["authorization"] == "Bearer token"
    assert signature(b"{}", secret=b"secret", timestamp_s=8) != given["x-steersman-signature"]
    assert set(headers(b"{}", Secrets(), timestamp_s=7)) == {"content-type", "user-agent"}


def test_secrets_come_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks at the end do not count; a file is read anew each time."""
    file = tmp_path / "secret"
    file.write_text("a-first-secret\n")
    monkeypatch.setenv("BEARER", "a-token-of-theirs")
    webhook = Webhook(name="a", url="http://x/", secret_file=str(file), bearer_env="BEARER")
    assert secrets_of(webhook) == Secrets(b"a-first-secret", "a-token-of-theirs")
    file.write_text("a-second-secret")
    assert secrets_of(webhook).signing == b"a-second-secret"


@pytest.mark.parametrize("content", ["", "short", "two\nlines of it"])
def test_what_is_no_secret_is_said(tmp_path: Path, content: str) -> None:
    """With the webhook's name and the mend, never with the secret."""
    file = tmp_path / "secret"
    file.write_text(content)
    with pytest.raises(SecretError, match=r"webhook a: .*secret holds no secret; write 8 bytes") as caught:
        secrets_of(Webhook(name="a", url="http://x/", secret_file=str(file)))
    assert not content or content not in str(caught.value).replace(str(file), "")
    with pytest.raises(SecretError, match="No such file"):
        secrets_of(Webhook(name="a", url="http://x/", secret_file=str(tmp_path / "none")))
