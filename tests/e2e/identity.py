"""Keys, tokens and certificates for tests, made with the openssl command; and a client that shows them."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

from gateway import Gateway

ISSUER = "https://issuer.test"
AUDIENCE = "steersman"


def openssl(*arguments: str, data: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=True, timeout=60)
    return done.stdout


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenIssuer:
    """An RSA key, its JWKS, and tokens that it signs."""

    def __init__(self, folder: Path, name: str = "issuer") -> None:
        self.key = folder / f"{name}.pem"
        openssl("genrsa", "-out", str(self.key), "2048")
        modulus = openssl("rsa", "-in", str(self.key), "-noout", "-modulus").decode().strip()
        number = bytes.fromhex(modulus.partition("=")[2])
        key = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "k", "n": _base64url(number), "e": "AQAB"}
        self.jwks = json.dumps({"keys": [key]})

    def token(self, subject: str, *, lives_s: int = 300, **claims: Any) -> str:
        now = int(time.time())
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": now + lives_s, **claims}
        parts = ({"alg": "RS256", "kid": "k", "typ": "JWT"}, payload)
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in parts)
        signature = openssl("dgst", "-sha256", "-sign", str(self.key), data=signed.encode())
        return f"{signed}.{_base64url(signature)}"


class Authority:
    """A certificate authority, and what it signs."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self.name = folder, name
        self.certificate, self.key = folder / f"{name}.crt", folder / f"{name}.key"
        subject = ("-subj", f"/CN={name}", "-days", "2")
        out = ("-keyout", str(self.key), "-out", str(self.certificate))
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *out, *subject)

    def issue(self, name: str, sans: str) -> tuple[Path, Path]:
        """A certificate with subject alternative names, and its key."""
        key, request, extensions, signed = (
            self.folder / f"{self.name}-{name}{suffix}" for suffix in (".key", ".csr", ".ext", ".crt")
        )
        extensions.write_text(f"subjectAltName={sans}\n")
        out = ("-keyout", str(key), "-out", str(request))
        openssl("req", "-newkey", "rsa:2048", "-nodes", *out, "-subj", f"/CN={name}")
        by = ("-CA", str(self.certificate), "-CAkey", str(self.key), "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", str(request), *by, "-extfile", str(extensions), "-out", str(signed))
        return signed, key


def ask(
    gateway: Gateway,
    *headers: tuple[str, str],
    source: str = "127.0.0.1",
    context: ssl.SSLContext | None = None,
    path: str = "/v1/models",
    body: object = None,
) -> tuple[int, Any, dict[str, str]]:
    """One request from a source address: status, decoded body, headers. Headers may repeat."""
    address = (source, 0)
    connection = (
        http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20, source_address=address)
        if context is None
        else http.client.HTTPSConnection(
            "127.0.0.1", gateway.port, timeout=20, source_address=address, context=context
        )
    )
    try:
        data = json.dumps(body).encode() if body is not None else b""
        connection.putrequest("GET" if body is None else "POST", path)
        for name, value in (*headers, ("content-length", str(len(data)))):
            connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        raw = answer.read()
        got = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, json.loads(raw) if raw else None, got
    finally:
        connection.close()


def who(gateway: Gateway, *headers: tuple[str, str], **how: Any) -> str | tuple[int, str]:
    """The tenant that the gateway takes a request's sender for (each may ask for a model of its name)."""
    status, body, _ = ask(gateway, *headers, **how)
    if status != 200:
        return status, body["error"]["message"]
    (model,) = body["data"]
    name: str = model["id"]
    return name


def bearer(credentials: str) -> tuple[str, str]:
    return "authorization", f"Bearer {credentials}"
