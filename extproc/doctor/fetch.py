"""One HTTP request, bounded in time and size; every way to fail is a `Failed` with its reason.

Of the standard library, so that `doctor` and `init` need no extra. It blocks: run it in a thread.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

from extproc.doctor.evidence import Failed
from extproc.upstream import tls_trouble

#: An Envoy with a thousand endpoints dumps some megabytes.
ANSWER_BYTES_MAX = 64 * 1024 * 1024

#: No proxy: what is asked is in this network, whatever the environment says.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole answer, whatever its status."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """The decoded body; None where it is no JSON, or nested beyond reason."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def date_ms(self) -> int | None:
        """The other side's clock in whole seconds, from its Date header."""
        try:
            return int(parsedate_to_datetime(self.headers.get("date", "")).timestamp() * 1000)
        except ValueError:
            return None


def fetch(
    url: str,
    *,
    timeout_s: float,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
) -> Fetched | Failed:
    """GET a URL, or POST a JSON body to it. `server_name` is what the certificate must have; the host when
    empty."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=dict(headers or {}))  # noqa: S310 (http or https: the caller's)
    if data is not None:
        request.add_header("content-type", "application/json")
    try:
        try:
            with _opener(tls, server_name).open(request, timeout=timeout_s) as answer:
                return Fetched(answer.status, answer.read(ANSWER_BYTES_MAX), _lower(answer.headers))
        except urllib.error.HTTPError as refused:
            with refused:
                return Fetched(refused.code, refused.read(ANSWER_BYTES_MAX), _lower(refused.headers))
    except TimeoutError:
        return Failed(f"no answer within {timeout_s:g} s")
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, Exception) and (why := tls_trouble(reason)):
            return Failed(why)
        if isinstance(reason, TimeoutError):
            return Failed(f"no answer within {timeout_s:g} s")
        return Failed(getattr(reason, "strerror", None) or str(reason))
    except (OSError, HTTPException, ValueError) as error:
        return Failed(getattr(error, "strerror", None) or str(error) or type(error).__name__)


class _NamedConnection(http.client.HTTPSConnection):
    """Asks for another name than it connects to."""

    server_name = ""

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        context: ssl.SSLContext = self._context  # type: ignore[attr-defined]  # the standard library's own
        self.sock = context.wrap_socket(self.sock, server_hostname=self.server_name or self.host)


class _NamedHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(context=context)
        self._named: Any = type("_Connection", (_NamedConnection,), {"server_name": server_name})
        self._tls = context

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._named, request, context=self._tls)


def _opener(tls: ssl.SSLContext | None, server_name: str) -> urllib.request.OpenerDirector:
    if tls is None:
        return _OPENER
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NamedHandler(tls, server_name))


def _lower(headers: Any) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in headers.items()}
