"""Who asks is what the real Envoy and the service can prove, and nothing that a client says of itself."""

from __future__ import annotations

import signal
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, free_ports, wait_for
from identity import AUDIENCE, ISSUER, Authority, TokenIssuer, ask, bearer, who

from extproc.core.contract import STRIPPED_HEADERS
from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

TENANTS = ("acme", "globex", "initech")
#: The trusted proxy's own address; other clients are at 127.0.0.1.
PROXY = "127.0.0.9"
SECRET = "0123456789abcdef0123456789abcdef"
CONFLICT = "prove different tenants; send one"


def tenants(**more: dict[str, Any]) -> list[dict[str, Any]]:
    """Each may ask for a model of its own name, by which a test knows it."""
    return [
        {"name": name, "models": [name], "keys": [{"sha256": hash_key(f"sk-{name}")}], **more.get(name, {})}
        for name in TENANTS
    ]


def gateway_of(gateway: dict[str, Any] | None = None, **sections: Any) -> Gateway:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    sections.setdefault("tenants", tenants())
    sections.setdefault("probes", {"enabled": False})  # nobody is at the address: only who asks is looked at
    return Gateway({"p": {"models": list(TENANTS), "addresses": [address]}}, gateway=gateway, **sections)


@dataclass
class World:
    gateway: Gateway
    issuer: TokenIssuer
    stranger: TokenIssuer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Keys, tokens and a trusted proxy at once."""
    folder = tmp_path_factory.mktemp("issuer")
    issuer = TokenIssuer(folder)
    jwt = {"issuer": ISSUER, "audiences": [AUDIENCE], "jwks_inline": issuer.jwks}
    proxy = {"networks": [f"{PROXY}/32"]}
    known = tenants(acme={"jwt_subject": "user-of-acme"}, globex={"jwt_subject": "user-of-globex"})
    with gateway_of({"jwt": jwt, "trusted_proxy": proxy}, tenants=known) as gateway:
        yield World(gateway, issuer, TokenIssuer(folder, "stranger"))


def test_a_token_that_envoy_verified_proves_its_tenant(world: World) -> None:
    """By its subject; a key in the same header still works."""
    assert who(world.gateway, bearer(world.issuer.token("user-of-acme"))) == "acme"
    assert who(world.gateway, bearer(world.issuer.token("user-of-globex"))) == "globex"
    assert who(world.gateway, bearer("sk-initech")) == "initech"


def test_a_token_that_is_wrong_is_refused_with_its_cause(world: World) -> None:
    """Expired, another's signature, another audience, nobody's subject, no subject."""
    issuer = world.issuer

    def refused(token: str) -> str:
        answer = who(world.gateway, bearer(token))
        assert isinstance(answer, tuple)
        assert answer[0] == 401
        return answer[1]

    assert refused(issuer.token("user-of-acme", lives_s=-3600)) == "the token is not valid: Jwt is expired"
    assert "verification fails" in refused(world.stranger.token("user-of-acme"))
    assert "Audiences" in refused(issuer.token("user-of-acme", aud="other"))
    assert "issuer" in refused(issuer.token("user-of-acme", iss="https://other.test"))
    assert refused(issuer.token("nobody")) == "the token's claim 'sub' is no tenant's"
    assert "[sub] field is not a string" in refused(issuer.token("", sub=["user-of-acme"]))
    # Changed after it was signed.
    head, payload, signature = issuer.token("nobody").split(".")
    forged = issuer.token("user-of-acme").split(".")[1]
    assert "verification fails" in refused(f"{head}.{forged}.{signature}")
    assert payload != forged


def test_a_proxy_is_believed_from_its_network_alone(world: World) -> None:
    """From elsewhere its header is removed, so that nothing is proven."""
    named = ("x-forwarded-tenant", "globex")
    assert who(world.gateway, named, source=PROXY) == "globex"
    assert who(world.gateway, named) == (401, "no API key; send 'Authorization: Bearer KEY'")
    assert who(world.gateway, named, bearer("sk-acme")) == "acme"
    # Saying that one comes from there does not help.
    claims = [
        (name, PROXY) for name in ("x-forwarded-for", "x-real-ip", "forwarded", "x-envoy-external-address")
    ]
    assert who(world.gateway, named, *claims, bearer("sk-acme")) == "acme"
    unknown = ("x-forwarded-tenant", "nobody")
    assert who(world.gateway, unknown, source=PROXY) == (401, "the proxy names an unknown tenant")


def test_two_proofs_must_be_of_one_tenant(world: World) -> None:
    """Which of two counts would be anybody's guess."""
    token, key = world.issuer.token("user-of-acme"), ("x-api-key", "sk-globex")
    proxy = ("x-forwarded-tenant", "acme")
    assert who(world.gateway, bearer(token), ("x-api-key", "sk-acme")) == "acme"
    assert who(world.gateway, bearer(token), key) == (401, f"jwt and key {CONFLICT}")
    assert who(world.gateway, proxy, key, source=PROXY) == (401, f"proxy and key {CONFLICT}")
    other = bearer(world.issuer.token("user-of-globex"))
    assert who(world.gateway, proxy, other, source=PROXY) == (401, f"proxy and jwt {CONFLICT}")
    # A wrong one is not made good by a right one.
    assert who(world.gateway, bearer(token), ("x-api-key", "sk-wrong")) == (401, "unknown API key")


def test_forged_identity_headers_change_nothing(world: World) -> None:
    """Neither ours nor what Envoy's filters say in headers elsewhere."""
    names = (*STRIPPED_HEADERS, "x-forwarded-client-cert", "x-jwt-payload", "x-tenant", "x-tenant-id", "sub")
    forged = [(name, "globex") for name in names]
    assert who(world.gateway, *forged, bearer("sk-acme")) == "acme"
    assert who(world.gateway, *forged) == (401, "no API key; send 'Authorization: Bearer KEY'")


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("authorization", "Bearer sk-acme", "Bearer sk-globex"),
        ("authorization", "Bearer sk-acme", "Bearer sk-acme"),
        ("x-api-key", "sk-acme", "sk-globex"),
        ("x-forwarded-tenant", "acme", "globex"),
    ],
)
def test_a_duplicate_identity_header_is_400(world: World, name: str, first: str, second: str) -> None:
    """Even with the same value."""
    answer = who(world.gateway, (name, first), (name.title(), second), source=PROXY)
    assert answer == (400, f"the header '{name}' was sent twice; send it once")


def test_a_duplicate_beside_a_token_is_400(world: World) -> None:
    """Envoy would take the first of the two."""
    pair = (bearer(world.issuer.token("user-of-acme")), bearer("sk-globex"))
    assert who(world.gateway, *pair) == (400, "the header 'authorization' was sent twice; send it once")


def test_keys_rotate_with_an_overlap_and_are_revoked_live(tmp_path: Path) -> None:
    """By SIGHUP; a key under the secret as well, and one that begins or ends does so by itself."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")

    def at(seconds: float) -> str:
        return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()

    keys: list[dict[str, Any]] = [
        {"sha256": hash_key("sk-old"), "expires": at(3600)},
        {"sha256": hash_key("sk-new"), "not_before": at(-3600)},
        {"sha256": hash_key("sk-later"), "not_before": at(3600)},
        {"sha256": hash_key("sk-past"), "expires": at(-1)},
        {"hmac_sha256": hash_key("weak", SECRET.encode())},
    ]
    # The wait for the later key guesses some sixty times.
    identity = {"key_secret_file": str(secret), "failed_attempts": {"burst": 1_000}}
    with gateway_of(tenants=tenants(acme={"keys": keys}), identity=identity) as gateway:
        assert [who(gateway, bearer(key)) for key in ("sk-old", "sk-new", "weak")] == ["acme"] * 3
        assert who(gateway, bearer("sk-later")) == (401, "this API key is not valid yet")
        assert who(gateway, bearer("sk-past")) == (401, "this API key has expired")
        keys[0]["revoked"] = True
        turn = time.time() + 1.5
        keys[1]["expires"] = keys[2]["not_before"] = datetime.fromtimestamp(turn, UTC).isoformat()
        gateway.write_config()
        assert gateway.service.process is not None
        gateway.service.process.send_signal(signal.SIGHUP)
        wait_for("the reload", lambda: gateway.status()["counts"].get("reload.applied") == 1)
        assert who(gateway, bearer("sk-old")) == (401, "this API key is revoked")
        now = [who(gateway, bearer(key)) for key in ("sk-new", "sk-later")]
        # On a busy machine their time may have come already.
        assert time.time() > turn or now == ["acme", (401, "this API key is not valid yet")]
        wait_for("the later key", lambda: who(gateway, bearer("sk-later")) == "acme")
        assert who(gateway, bearer("sk-new")) == (401, "this API key has expired")
        # Without the secret nothing changes.
        secret.unlink()
        gateway.service.process.send_signal(signal.SIGHUP)
        wait_for("the refusal", lambda: gateway.status()["counts"].get("reload.refused") == 1)
        assert who(gateway, bearer("weak")) == "acme"
        assert "key_secret_file: cannot be read" in gateway.service.log.read_text()


def test_failed_attempts_of_a_source_are_limited_and_recover() -> None:
    """429 after the burst, but whoever proves who they are is served, behind the same address too; one audit
    line."""
    limits = {"failed_attempts": {"per_minute": 20, "burst": 5}}
    with gateway_of(identity=limits) as gateway:
        # Not a guess, so not counted.
        assert [ask(gateway)[0] for _ in range(10)] == [401] * 10
        assert [ask(gateway, bearer(f"sk-guess-{i}"))[0] for i in range(5)] == [401] * 5
        status, body, headers = ask(gateway, bearer("sk-guess"))
        assert (status, body["error"]["code"]) == (429, "too_many_attempts")
        assert 1 <= int(headers["retry-after"]) <= 3
        assert [who(gateway, bearer("sk-acme")) for _ in range(3)] == ["acme"] * 3
        assert ask(gateway, bearer("sk-guess"), source="127.0.0.2")[0] == 401
        # What it says of its address changes nothing.
        assert ask(gateway, bearer("sk-guess"), ("x-forwarded-for", "127.0.0.3"))[0] == 429
        assert gateway.status()["counts"]["identity.blocked"] >= 1
        # One line for each time that its attempts are used up, however many come after.
        assert 1 <= gateway.service.log.read_text().count("audit: 127.0.0.1 failed too often") <= 3
        wait_for("recovery", lambda: ask(gateway, bearer("sk-guess"))[0] == 401)


class TlsGateway(Gateway):
    """Its harness's own questions come over TLS as well."""

    context: ssl.SSLContext

    def ready(self) -> bool:
        return ask(self, context=self.context, path="/health")[0] == 200


def client(authority: Authority, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.check_hostname = False
    if pair is not None:
        context.load_cert_chain(*map(str, pair))
    return context


def test_a_client_certificate_proves_its_tenant(tmp_path: Path) -> None:
    """By its URI or DNS name; one of another authority is not even heard."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    certificate, key = authority.issue("gateway", "IP:127.0.0.1")
    uri = client(authority, authority.issue("uri", "URI:spiffe://test/acme"))
    dns = client(authority, authority.issue("dns", "DNS:globex.test"))
    both = client(authority, authority.issue("both", "URI:spiffe://test/acme,DNS:globex.test"))
    mesh = client(authority, authority.issue("mesh", "URI:spiffe://test/anybody"))
    forged = client(authority, stranger.issue("forged", "URI:spiffe://test/acme"))
    nobody = client(authority)
    tls = {
        "certificate": str(certificate),
        "key": str(key),
        "client_ca": str(authority.certificate),
    }
    known = tenants(
        acme={"certificate_sans": ["spiffe://test/acme"], "keys": []},
        globex={"certificate_sans": ["globex.test"]},
    )
    address = f"127.0.0.1:{free_ports(1)[0]}"
    gateway = TlsGateway(
        {"p": {"models": list(TENANTS), "addresses": [address]}},
        gateway={"tls": tls},
        tenants=known,
        probes={"enabled": False},
    )
    gateway.context = nobody
    with gateway:
        assert who(gateway, context=uri) == "acme"
        assert who(gateway, context=dns) == "globex"
        assert who(gateway, bearer("sk-globex"), context=dns) == "globex"
        assert who(gateway, bearer("sk-globex"), context=uri) == (401, f"certificate and key {CONFLICT}")
        answer = who(gateway, context=both)
        assert answer == (401, "the client certificate's names are different tenants'")
        names_nobody = "the client certificate (spiffe://test/anybody) is in no tenant's certificate_sans"
        refused = who(gateway, context=mesh)
        assert refused == (401, f"{names_nobody}, and there is no API key; send 'Authorization: Bearer KEY'")
        assert who(gateway, context=nobody) == (401, "no API key; send 'Authorization: Bearer KEY'")
        assert who(gateway, bearer("sk-initech"), context=mesh) == "initech"
        assert who(gateway, bearer("sk-initech"), context=nobody) == "initech"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            who(gateway, context=forged)
        # What a proxy elsewhere would say of its client's certificate is nothing here.
        claim = ("x-forwarded-client-cert", "URI=spiffe://test/acme")
        assert who(gateway, claim, context=nobody)[0] == 401
