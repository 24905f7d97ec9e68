from __future__ import annotations

from ipaddress import ip_network

import pytest

from extproc.core.outcome import Reject
from extproc.core.tenant import (
    ANONYMOUS,
    KEY_BYTES_MAX,
    ApiKey,
    Credentials,
    Directory,
    Identity,
    ProxyTrust,
    Tenant,
    hash_key,
)

SECRET = b"0123456789abcdef"
ACME = Tenant(name="acme", jwt_subject="a", certificate_sans=frozenset({"spiffe://x/acme"}))
GLOBEX = Tenant(name="globex", models=frozenset({"m"}), jwt_subject="g", certificate_sans=frozenset({"g.x"}))
DIRECTORY = Directory(
    [
        (ACME, [hash_key("a-key"), hash_key("a-second"), ApiKey(hash_key("weak", SECRET), "ci")]),
        (
            GLOBEX,
            [
                hash_key("g-key"),
                ApiKey(hash_key("dated"), not_before=10.0, expires=20.0),
                ApiKey(hash_key("gone"), revoked=True),
            ],
        ),
    ],
    required=True,
    secret=SECRET,
    claim="sub",
    proxy=ProxyTrust("x-forwarded-tenant", (ip_network("10.0.0.0/24"), ip_network("fd00::/64"))),
)
INSIDE = "10.0.0.7"


def identify(now_s: float = 0.0, directory: Directory = DIRECTORY, **evidence: object) -> Identity | Reject:
    return directory.identify(Credentials(**evidence), now_s=now_s)  # type: ignore[arg-type]


def proven(now_s: float = 0.0, **evidence: object) -> tuple[str, tuple[str, ...]]:
    identity = identify(now_s, **evidence)
    assert isinstance(identity, Identity), identity
    return identity.tenant.name, identity.methods


def refused(now_s: float = 0.0, **evidence: object) -> str:
    answer = identify(now_s, **evidence)
    assert isinstance(answer, Reject), answer
    assert answer.status == 401
    assert (answer.code == "identity_conflict") == ("different tenants" in answer.message)
    return answer.message


@pytest.mark.parametrize(
    ("authorization", "api_key", "tenant"),
    [
        ("Bearer a-key", None, ACME),
        ("bearer a-second", None, ACME),
        ("BEARER   g-key ", None, GLOBEX),
        (None, "g-key", GLOBEX),
        ("Bearer a-key", "a-key", ACME),
        ("Bearer a-key", "", ACME),
        (None, "weak", ACME),
    ],
)
def test_known_keys(authorization: str | None, api_key: str | None, tenant: Tenant) -> None:
    """A key in either header, or the same in both, is its tenant's, hashed plainly or under the secret."""
    identity = identify(authorization=authorization, api_key=api_key)
    assert isinstance(identity, Identity)
    assert (identity.tenant, identity.methods) == (tenant, ("key",))
    assert identity.key is not None


@pytest.mark.parametrize(
    ("authorization", "api_key", "message"),
    [
        (None, None, "no API key; send 'Authorization: Bearer KEY'"),
        (None, "", "no API key; send 'Authorization: Bearer KEY'"),
        ("Bearer wrong", None, "unknown API key"),
        (None, "A-KEY", "unknown API key"),
        (None, hash_key("a-key"), "unknown API key"),
        (None, hash_key("weak", SECRET), "unknown API key"),
        ("Bearer " + "x" * (KEY_BYTES_MAX + 1), None, "unknown API key"),
        ("Bearer a-key,Bearer g-key", None, "unknown API key"),
        ("Bearer k\xe9y", None, "unknown API key"),
        ("Bearer a.b.c", None, "unknown API key"),
        ("Basic YTpi", None, "the Authorization header is not 'Bearer KEY'"),
        ("Basic YTpi", "a-key", "the Authorization header is not 'Bearer KEY'"),
        ("Bearer", None, "the Authorization header is not 'Bearer KEY'"),
        ("Bearer  ", None, "the Authorization header is not 'Bearer KEY'"),
        ("", None, "the Authorization header is not 'Bearer KEY'"),
        ("a-key", None, "the Authorization header is not 'Bearer KEY'"),
        ("Bearer a-key", "g-key", "Authorization and x-api-key carry different keys; send one"),
        (None, "gone", "this API key is revoked"),
    ],
)
def test_refused(authorization: str | None, api_key: str | None, message: str) -> None:
    """Everything else is 401 with its cause, and never with a key."""
    answer = identify(authorization=authorization, api_key=api_key)
    assert answer == Reject(status=401, code="invalid_api_key", message=message)


def test_a_keys_times() -> None:
    """From the first second on, until before the last."""
    assert refused(9.9, api_key="dated") == "this API key is not valid yet"
    assert proven(10.0, api_key="dated") == proven(19.9, api_key="dated") == ("globex", ("key",))
    assert refused(20.0, api_key="dated") == "this API key has expired"


def test_a_key_under_another_secret_is_unknown() -> None:
    """So that a leaked hash is of no use elsewhere; without a secret only plain hashes are looked up."""
    for secret in (b"another secret!!", None):
        keys = [ApiKey(hash_key("weak", SECRET))]
        directory = Directory([(ACME, keys)], required=True, secret=secret)
        assert isinstance(identify(directory=directory, api_key="weak"), Reject)


def test_what_envoy_verified() -> None:
    """A token's claim and a certificate's names."""
    assert proven(jwt="a", authorization="Bearer x.y.z") == ("acme", ("jwt",))
    assert proven(sans=("spiffe://x/acme", "unknown")) == ("acme", ("certificate",))
    assert proven(sans=("g.x",), jwt="g", api_key="g-key") == ("globex", ("certificate", "jwt", "key"))
    for claim in ("", "nobody"):
        assert refused(jwt=claim) == "the token's claim 'sub' is no tenant's"
    assert refused(authorization="Bearer x.y.z", jwt_failure="Jwt is expired") == (
        "the token is not valid: Jwt is expired"
    )
    assert proven(authorization="Bearer a-key", jwt_failure="Jwt is not in the form")[0] == "acme"


def test_a_proxy_is_believed_by_its_address() -> None:
    """IPv4 and IPv6; elsewhere its header says nothing."""
    for source in (INSIDE, "fd00::9"):
        assert proven(proxy_tenant="acme", source=source) == ("acme", ("proxy",))
    for source in ("10.0.1.7", "", "junk", "fd01::9"):
        assert refused(proxy_tenant="acme", source=source).startswith("no API key")
    for name in ("nobody", "", "acme,globex"):
        assert refused(proxy_tenant=name, source=INSIDE) == "the proxy names an unknown tenant"
    # By its own address, whatever it says of its client's.
    assert proven(proxy_tenant="acme", source="9.9.9.9", peer=INSIDE) == ("acme", ("proxy",))
    assert refused(proxy_tenant="acme", source=INSIDE, peer="9.9.9.9").startswith("no API key")
    directory = Directory([(ACME, [])], required=True)
    assert isinstance(identify(directory=directory, proxy_tenant="acme", source=INSIDE), Reject)
    assert isinstance(identify(directory=directory, jwt="a"), Reject), "no claim is believed"


@pytest.mark.parametrize(
    "evidence",
    [
        {"jwt": "a", "api_key": "g-key"},
        {"jwt": "a", "sans": ("g.x",)},
        {"sans": ("g.x",), "authorization": "Bearer a-key"},
        {"proxy_tenant": "acme", "source": INSIDE, "jwt": "g"},
        {"sans": ("g.x", "spiffe://x/acme")},
    ],
)
def test_two_tenants_proven_are_none(evidence: dict[str, object]) -> None:
    """Which one counts would be anybody's guess."""
    assert "different tenants" in refused(**evidence)


@pytest.mark.parametrize("right", [{"jwt": "a"}, {"sans": ("spiffe://x/acme",)}])
def test_a_wrong_credential_is_not_made_good_by_a_right_one(right: dict[str, object]) -> None:
    """But a certificate that names no tenant says nothing."""
    assert refused(api_key="wrong", **right) == "unknown API key"
    assert proven(api_key="a-key", sans=("mesh",)) == ("acme", ("key",))


@pytest.mark.parametrize(
    ("evidence", "guesses"),
    [
        (Credentials(), False),
        (Credentials(api_key="x"), True),
        (Credentials(authorization="Bearer x"), True),
        (Credentials(authorization="Bearer x.y.z", jwt="a"), False),
        (Credentials(proxy_tenant="x", sans=("y",)), False),
    ],
)
def test_what_counts_as_a_guess(evidence: Credentials, guesses: bool) -> None:
    """What Envoy verified cannot be guessed; nothing at all is no attempt."""
    assert evidence.guesses is guesses


def test_anonymous() -> None:
    """Where no key is required none is looked at."""
    directory = Directory([(ACME, [hash_key("a-key")])], required=False)
    for authorization in (None, "Bearer a-key", "Basic x"):
        assert identify(directory=directory, authorization=authorization) == Identity(ANONYMOUS)
