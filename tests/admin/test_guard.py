"""Who may ask what, without any server."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from extproc.admin.guard import FAILURES_BURST, READ, WRITE, Access, AccessGuard, Denied, host_allowed
from extproc.config.admin import Admin, AdminToken

S = 1_000_000_000


def token(name: str, scope: Any) -> AdminToken:
    return AdminToken(name=name, sha256=hashlib.sha256(f"{name}-secret".encode()).hexdigest(), scope=scope)


def guard(**settings: Any) -> AccessGuard:
    return AccessGuard(Admin(**settings))


TWO = [token("look", "read"), token("do", "write")]


@pytest.mark.parametrize(
    ("host", "allowed", "is_allowed"),
    [
        ("127.0.0.1:9090", [], True),
        ("localhost:1234", [], True),  # ssh -L 1234:localhost:9090
        ("[::1]:9090", [], True),
        ("10.1.2.3", [], True),  # an address cannot be rebound
        ("evil.example", [], False),
        ("localhost.evil.example", [], False),
        ("localhost:99999.evil.example", [], False),
        ("127.0.0.1.evil.example", [], False),
        ("", [], False),
        ("[::1", [], False),
        ("ops.example", ["ops.example"], True),
        ("OPS.example:8443", ["ops.example"], True),
        ("ops.example:8443", ["ops.example:443"], False),
        ("ops.example@evil.example", ["ops.example"], False),
    ],
)
def test_only_names_that_cannot_be_a_strangers_are_answered(
    host: str, allowed: list[str], is_allowed: bool
) -> None:
    """Addresses, localhost and listed names; anything else may be DNS rebinding."""
    assert host_allowed(host, allowed) is is_allowed


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"Origin": "http://127.0.0.1:9090"}, None),
        ({"Origin": "https://127.0.0.1:9090"}, None),  # a proxy that ends TLS
        ({"Origin": "http://evil.example"}, "cross_site"),
        ({"Origin": "http://127.0.0.1:9091"}, "cross_site"),  # another service of this machine
        ({"Origin": "null"}, "cross_site"),
        ({"Origin": "http://["}, "cross_site"),
        ({"Sec-Fetch-Site": "same-origin"}, None),
        ({"Sec-Fetch-Site": "cross-site"}, "cross_site"),
        ({"Sec-Fetch-Site": "same-site"}, "cross_site"),
        ({"Host": "evil.example"}, "wrong_host"),
    ],
)
def test_orders_come_from_the_ports_own_page(headers: dict[str, str], code: str | None) -> None:
    """What a stranger's page can make a browser send is refused."""
    refusal = guard().addressed({"Host": "127.0.0.1:9090", **headers}, changing=True)
    assert (refusal.code if refusal else None) == code


def test_a_listed_name_is_an_origin_too() -> None:
    """Behind a proxy that rewrites the host."""
    found = guard(allowed_hosts=["ops.example"])
    headers = {"Host": "127.0.0.1:9090", "Origin": "https://ops.example"}
    assert found.addressed(headers, changing=True) is None


@pytest.mark.parametrize(
    ("settings", "free"),
    [
        ({}, {READ}),
        ({"tokens": TWO}, set()),
        ({"auth": "write", "tokens": TWO}, {READ}),
        ({"auth": "none"}, {READ, WRITE}),
        ({"listen": "0.0.0.0:9090", "tokens": TWO}, set()),
    ],
)
def test_what_needs_no_token(settings: dict[str, Any], free: set[str]) -> None:
    """Reading on loopback while no token is listed; orders never, unless the file says so."""
    assert guard(**settings).free == free


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"listen": "0.0.0.0:9090"}, "no token is listed"),
        ({"listen": "0.0.0.0:9090", "auth": "write", "tokens": TWO}, "loopback alone"),
        ({"listen": "10.0.0.1:9090", "auth": "none"}, "loopback alone"),
        ({"auth": "token"}, "no token is listed"),
        ({"tokens": [TWO[0], TWO[0]]}, "is there twice"),
    ],
)
def test_an_open_port_beyond_loopback_is_no_configuration(settings: dict[str, Any], message: str) -> None:
    """The mistake is named before anything listens."""
    with pytest.raises(ValueError, match=message):
        Admin(**settings)


def test_scopes_are_apart() -> None:
    """A reader's token looks; a writer's does both; none does nothing where tokens are asked for."""
    found = guard(tokens=TWO)
    reader = found.admit("Bearer look-secret", "10.0.0.9", now_ns=0)
    writer = found.admit("bearer do-secret", "10.0.0.9", now_ns=0)
    nobody = found.admit("", "10.0.0.9", now_ns=0)
    assert isinstance(reader, Access)
    assert isinstance(writer, Access)
    assert isinstance(nobody, Access)
    assert (reader.name, writer.name, nobody.name) == ("look", "do", "")
    assert found.may(reader, READ) is None
    assert found.may(writer, WRITE) is None
    assert found.may(writer, READ) is None
    refused = found.may(reader, WRITE)
    assert refused is not None
    assert refused.status == 403
    missing = found.may(nobody, READ)
    assert missing is not None
    assert missing.status == 401


@pytest.mark.parametrize(
    "sent", ["Bearer wrong", "Basic look-secret", "look-secret", "Bearer", "Bearer " + "x" * 600]
)
def test_what_is_no_token_is_401(sent: str) -> None:
    """Wrong, of another kind, empty, or endless."""
    found = guard(tokens=TWO).admit(sent, "10.0.0.9", now_ns=0)
    assert isinstance(found, Denied)
    assert (found.status, found.code) == (401, "wrong_token")


def test_guessing_is_slowed() -> None:
    """After so many wrong tokens an address waits, with the right one too; others do not."""
    found = guard(tokens=TWO)
    for _ in range(FAILURES_BURST):
        found.admit("Bearer guess", "10.0.0.9", now_ns=0)
    blocked = found.admit("Bearer do-secret", "10.0.0.9", now_ns=0)
    assert isinstance(blocked, Denied)
    assert blocked.status == 429
    assert blocked.retry_after_s is not None
    assert isinstance(found.admit("Bearer do-secret", "10.0.0.8", now_ns=0), Access)
    assert isinstance(found.admit("Bearer do-secret", "10.0.0.9", now_ns=60 * S), Access)


def test_other_tokens_hold_at_once() -> None:
    """A reload takes one away."""
    found = guard(tokens=TWO)
    found.apply(Admin(tokens=[TWO[0]]))
    assert isinstance(found.admit("Bearer do-secret", "10.0.0.9", now_ns=0), Denied)
