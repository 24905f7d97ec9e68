"""The admin port that `up` and `demo` open where the configuration has none: on loopback, with a token.

Owns its address and the token, which is made anew for each run and shown once, in the address that is
printed: after the `#`, so that no server, log or proxy ever sees it.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from dataclasses import dataclass, field

from extproc.config.admin import Admin, AdminToken
from extproc.config.model import Config
from extproc.supervise.asking import reachable
from extproc.supervise.ports import free_ports, tcp_problem


@dataclass(frozen=True, slots=True)
class OpenedPage:
    """One run's admin port. `hold` keeps its number from other runs for as long as this one lives."""

    listen: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    hold: socket.socket | None = field(default=None, repr=False)

    def given(self, config: Config) -> Config:
        """The configuration with this port, where it has none of its own."""
        if config.admin is not None:
            return config
        sha256 = hashlib.sha256(self.token.encode()).hexdigest()
        token = AdminToken(name="this-run", sha256=sha256, scope="write")
        return config.model_copy(update={"admin": Admin(listen=self.listen, auth="write", tokens=[token])})


def opened_page() -> OpenedPage:
    """The default port, or a free one where that is taken."""
    usual = Admin().listen
    # Two runs that start at once would both find the port free: whoever has this name has the port. It lives
    # in the network's namespace, as the port does, and ends with the process.
    hold = socket.socket(socket.AF_UNIX)
    try:
        hold.bind(f"\0steersman {usual}")
    except OSError:
        hold.close()
        return OpenedPage(f"127.0.0.1:{free_ports(1)[0]}")
    if tcp_problem(usual):
        hold.close()
        return OpenedPage(f"127.0.0.1:{free_ports(1)[0]}")
    return OpenedPage(usual, hold=hold)


def page_url(config: Config, opened: OpenedPage | None) -> str:
    """Where a person finds the page, with the token where this run made one; "" where there is no page."""
    admin = config.admin
    if admin is None:
        return ""
    url = f"{'https' if admin.tls else 'http'}://{reachable(admin.listen)}/"
    mine = opened is not None and admin == opened.given(config.model_copy(update={"admin": None})).admin
    return f"{url}#token={opened.token}" if mine and opened is not None else url
