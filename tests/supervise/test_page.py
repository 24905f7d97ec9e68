"""The admin port that `up` and `demo` open by themselves."""

from __future__ import annotations

import hashlib
import socket

from extproc.config.admin import Admin
from extproc.config.load import loads
from extproc.supervise.page import OpenedPage, opened_page, page_url
from extproc.supervise.ports import problems

CONFIG = """
gateway: {auth: none}
pools: [{name: p, models: [m], endpoints: [{address: "10.0.0.1:80"}]}]
"""


def test_a_configuration_without_one_gets_a_port_on_loopback() -> None:
    """Looking is free there, orders need this run's token; the configuration holds its hash alone."""
    opened = OpenedPage("127.0.0.1:9090")
    config = opened.given(loads(CONFIG))
    assert config.admin is not None
    assert (config.admin.loopback, config.admin.guard) == (True, "write")
    (token,) = config.admin.tokens
    assert token.sha256 == hashlib.sha256(opened.token.encode()).hexdigest()
    assert token.scope == "write"
    assert opened.token not in config.model_dump_json()
    assert page_url(config, opened) == f"http://127.0.0.1:9090/#token={opened.token}"


def test_each_run_has_a_token_of_its_own() -> None:
    """And it shows in no representation."""
    one, other = OpenedPage("127.0.0.1:9090"), OpenedPage("127.0.0.1:9090")
    assert one.token != other.token
    assert one.token not in repr(one)


def test_a_configured_port_stays_as_it_is() -> None:
    """No token is added to it, and none is printed."""
    config = loads(CONFIG + "admin: {listen: '127.0.0.1:9191'}\n")
    opened = OpenedPage("127.0.0.1:9090")
    assert opened.given(config) is config
    assert page_url(config, opened) == "http://127.0.0.1:9191/"
    assert page_url(loads(CONFIG), None) == ""


def test_every_interface_is_reached_at_loopback() -> None:
    """The address that is printed can be opened."""
    admin = f"admin: {{listen: '0.0.0.0:9191', tokens: [{{name: ops, sha256: {'a' * 64}}}]}}\n"
    assert page_url(loads(CONFIG + admin), None) == "http://127.0.0.1:9191/"


def test_two_runs_at_once_have_two_ports() -> None:
    """The second one takes another, though nobody listens on the first yet."""
    first, second = opened_page(), opened_page()
    assert first is not None
    assert second is not None
    try:
        assert first.listen != second.listen
        if first.hold is not None:
            assert first.listen == Admin().listen
    finally:
        for each in (first, second):
            if each.hold is not None:
                each.hold.close()


def test_a_taken_admin_port_is_named_before_anything_starts() -> None:
    """With the setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        config = loads(CONFIG + f"admin: {{listen: '{listen}'}}\n")
        assert [each for each in problems(config) if each.startswith(f"admin.listen: {listen} is taken")]
