"""Who is asking: tenants, and identity from what can be trusted.

Owns the lookup of API keys. Only hashes are held; the lookup is by the digest of what the client
sent, so neither its time nor its outcome says anything about the key that would have fitted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from extproc.core.outcome import Reject

#: A longer key is refused unread.
KEY_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A billing and isolation unit; `models` and `regions` None mean all."""

    name: str
    models: frozenset[str] | None = None
    default_model: str | None = None
    regions: frozenset[str] | None = None


ANONYMOUS = Tenant(name="anonymous")


def hash_key(key: str) -> str:
    """The form in which a key is kept: SHA-256 in hex. Keys are 256 random bits, so no salt is due."""
    return hashlib.sha256(key.encode()).hexdigest()


class Directory:
    """Tenants by the hash of their keys; with `required` false everybody is anonymous."""

    def __init__(self, tenants: Iterable[tuple[Tenant, Iterable[str]]], *, required: bool) -> None:
        self.required = required
        self._by_hash: dict[str, Tenant] = {}
        self.tenants: dict[str, Tenant] = {}
        for tenant, hashes in tenants:
            self.tenants[tenant.name] = tenant
            for digest in hashes:
                self._by_hash[digest] = tenant

    def identify(self, authorization: str | None, api_key: str | None) -> Tenant | Reject:
        """The tenant of an `Authorization: Bearer` or `x-api-key` header; Reject is 401."""
        if not self.required:
            return ANONYMOUS
        key = api_key or None
        if authorization is not None:
            scheme, _, credentials = authorization.partition(" ")
            if scheme.lower() != "bearer" or not credentials.strip():
                return unauthorized("the Authorization header is not 'Bearer KEY'")
            bearer = credentials.strip()
            if key is not None and key != bearer:
                return unauthorized("Authorization and x-api-key carry different keys; send one")
            key = bearer
        if not key:
            return unauthorized("no API key; send 'Authorization: Bearer KEY'")
        tenant = self._by_hash.get(hash_key(key)) if len(key) <= KEY_BYTES_MAX else None
        return tenant or unauthorized("unknown API key")


def unauthorized(message: str) -> Reject:
    """A 401."""
    return Reject(status=401, code="invalid_api_key", message=message)
