"""Posts one JSON message over HTTP(S), within a time that covers everything from the look-up to the answer.

Owns the request, its signature and its secrets. Nothing of the answer but its status is read; redirects are
not followed and proxies not used: the URL is the receiver's own.

The signature: `x-steersman-signature: sha256=` and the hex HMAC-SHA-256, under the webhook's secret, of the
value of `x-steersman-timestamp` (unix seconds), a full stop and the body.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from extproc import http1
from extproc.config.alerts import Webhook

#: A secret with fewer bytes is none.
SECRET_BYTES_MIN: Final = 8


class SecretError(Exception):
    """A secret cannot be had; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a webhook signs with, and shows; None for neither."""

    signing: bytes | None = None
    bearer: str | None = None


def secrets_of(webhook: Webhook) -> Secrets:
    """Read now: a rotated file is taken with the next message. Raises SecretError."""
    signing = _secret(webhook, "secret", webhook.secret_file, webhook.secret_env)
    bearer = _secret(webhook, "bearer", webhook.bearer_file, webhook.bearer_env)
    return Secrets(signing, bearer.decode("latin-1") if bearer is not None else None)


def _secret(webhook: Webhook, kind: str, file: str | None, env: str | None) -> bytes | None:
    if file is not None:
        try:
            secret = Path(file).read_bytes().strip()
        except OSError as error:
            raise SecretError(f"webhook {webhook.name}: {kind}_file {file}: {error.strerror}") from None
    elif env is not None:
        secret = os.environ.get(env, "").encode().strip()
    else:
        return None
    if len(secret) < SECRET_BYTES_MIN or any(byte in b"\r\n\0" for byte in secret):
        where = file or f"${env}"
        message = f"holds no {kind}; write {SECRET_BYTES_MIN} bytes or more into it, on one line"
        raise SecretError(f"webhook {webhook.name}: {where} {message}")
    return secret


def signature(body: bytes, *, secret: bytes, timestamp_s: int) -> str:
    """The signature header's value."""
    return "sha256=" + hmac.new(secret, f"{timestamp_s}.".encode() + body, hashlib.sha256).hexdigest()


def headers(body: bytes, secrets: Secrets, *, timestamp_s: int) -> dict[str, str]:
    """What is sent beside the body."""
    found = {"content-type": "application/json", "user-agent": "steersman-alerts"}
    if secrets.signing is not None:
        found["x-steersman-timestamp"] = str(timestamp_s)
        found["x-steersman-signature"] = signature(body, secret=secrets.signing, timestamp_s=timestamp_s)
    if secrets.bearer is not None:
        found["authorization"] = f"Bearer {secrets.bearer}"
    return found


async def post(
    url: str, body: bytes, given: Mapping[str, str], *, timeout_s: float, ca_file: str | None = None
) -> int:
    """The answer's status. Raises OSError or TimeoutError where there is none."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host = parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = {"host": parts.netloc.rpartition("@")[2], "content-length": str(len(body)), **given}
    async with asyncio.timeout(timeout_s):
        tls = await asyncio.to_thread(ssl.create_default_context, cafile=ca_file) if secure else None
        return (await http1.ask("POST", host, port, path, headers=sent, body=body, tls=tls))[0]
