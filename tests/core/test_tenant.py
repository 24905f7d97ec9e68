from __future__ import annotations

import pytest

from extproc.core.outcome import Reject
from extproc.core.tenant import ANONYMOUS, KEY_BYTES_MAX, Directory, Tenant, hash_key

ACME, GLOBEX = Tenant(name="acme"), Tenant(name="globex", models=frozenset({"m"}))
DIRECTORY = Directory(
    [(ACME, [hash_key("a-key"), hash_key("a-second")]), (GLOBEX, [hash_key("g-key")])], required=True
)


@pytest.mark.parametrize(
    ("authorization", "api_key", "tenant"),
    [
        ("Bearer a-key", None, ACME),
        ("bearer a-second", None, ACME),
        ("BEARER   g-key ", None, GLOBEX),
        (None, "g-key", GLOBEX),
        ("Bearer a-key", "a-key", ACME),
        ("Bearer a-key", "", ACME),
    ],
)
def test_known_keys(authorization: str | None, api_key: str | None, tenant: Tenant) -> None:
    """A key in either header, or the same in both, is its tenant's."""
    assert DIRECTORY.identify(authorization, api_key) is tenant


@pytest.mark.parametrize(
    ("authorization", "api_key", "message"),
    [
        (None, None, "no API key; send 'Authorization: Bearer KEY'"),
        (None, "", "no API key; send 'Authorization: Bearer KEY'"),
        ("Bearer wrong", None, "unknown API key"),
        (None, "A-KEY", "unknown API key"),
        (None, hash_key("a-key"), "unknown API key"),
        ("Bearer " + "x" * (KEY_BYTES_MAX + 1), None, "unknown API key"),
        ("Bearer a-key,Bearer g-key", None, "unknown API key"),
        ("Bearer k\xe9y", None, "unknown API key"),
        ("Basic YTpi", None, "the Authorization header is not 'Bearer KEY'"),
        ("Basic YTpi", "a-key", "the Authorization header is not 'Bearer KEY'"),
        ("Bearer", None, "the Authorization header is not 'Bearer KEY'"),
        ("Bearer  ", None, "the Authorization header is not 'Bearer KEY'"),
        ("", None, "the Authorization header is not 'Bearer KEY'"),
        ("a-key", None, "the Authorization header is not 'Bearer KEY'"),
        ("Bearer a-key", "g-key", "Authorization and x-api-key carry different keys; send one"),
    ],
)
def test_refused(authorization: str | None, api_key: str | None, message: str) -> None:
    """Everything else is 401 with its cause, and never with a key."""
    answer = DIRECTORY.identify(authorization, api_key)
    assert answer == Reject(status=401, code="invalid_api_key", message=message)


def test_anonymous() -> None:
    """Where no key is required none is looked at."""
    directory = Directory([(ACME, [hash_key("a-key")])], required=False)
    for authorization in (None, "Bearer a-key", "Basic x"):
        assert directory.identify(authorization, None) is ANONYMOUS
