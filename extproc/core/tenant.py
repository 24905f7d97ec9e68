"""Who is asking: tenants, and identity from what can be trusted.

Owns the proofs and their order. A request may carry several: an API key, a JWT that Envoy verified, a
client certificate that Envoy verified, a name from a trusted proxy. The laws:

- A credential that is wrong (an unknown key, a token that Envoy refused or that names no tenant, a proxy's
  name that no tenant has) refuses the request, whatever else it proves.
- A certificate that names no tenant says nothing: a mesh gives one to everybody.
- All that is proven must be one tenant. Two are 401: which one counts would be anybody's guess.

Only hashes of keys are held. The lookup is by the digest of what the client sent, in a table whose own
hashing is seeded by the process, and what it finds is compared in constant time: neither its time nor its
outcome says anything about the key that would have fitted.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal

import msgspec

from extproc.core.errors import Error
from extproc.core.outcome import Reject
from extproc.core.remote.identity import AskTaken
from extproc.core.spill.values import SpillAllowance

#: A longer key is refused unread.
KEY_BYTES_MAX = 4096
#: So much of a certificate's names is said again to who has shown it.
NAMES_SAID_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A billing and isolation unit; `models` and `regions` None mean all."""

    name: str
    service_class: str = "standard"
    models: frozenset[str] | None = None
    default_model: str | None = None
    regions: frozenset[str] | None = None
    jwt_subject: str | None = None
    certificate_sans: frozenset[str] = frozenset()
    #: How its replicas are chosen, in whichever pool; the pool's own way where None.
    strategy: str | None = None
    #: The smallest model of a family that its requests get: a model, or a rank (1 the smallest).
    quality_floor: str | int | None = None
    #: Whether its clients may be told a decision's reason.
    explain: bool = False
    #: Whether its prompts may stand in traces.
    trace_prompts: bool = False
    #: Whether, and for how much, its requests may go to another pool that is no better but has room.
    spill: SpillAllowance | None = None
    #: The model that its requests get for one that is only at another site, while that is away.
    away_model: str | None = None
    #: Of a request's tenant: where its client is, and which of two sites serves those ("": as everybody).
    place: str = ""
    side: Literal["", "here", "there"] = ""

    def may(self, model: str) -> bool:
        """Whether its requests may go to a model, where there is such a one."""
        return self.models is None or model in self.models


ANONYMOUS = Tenant(name="anonymous")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key by its hash, valid from `not_before` until before `expires` (unix seconds)."""

    hash: str
    name: str = ""
    not_before: float | None = None
    expires: float | None = None
    revoked: bool = False

    @property
    def id(self) -> str:
        """What it is called in quotas and records: its name, or the beginning of its hash."""
        return self.name or self.hash[:12]


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of who sent it.

    `authorization` and `api_key` are the client's own words. The rest only Envoy can have said: `jwt` is
    the claim of the token in `authorization`, verified ("" when it has no such claim), `jwt_failure` why one
    was refused,
    `sans` the names in a verified client certificate, `proxy_tenant` a trusted proxy's header, which is
    believed after a look at `peer`, the address (no port) of the connection; `source` is the client's, which
    differs from it where a proxy's word on that is taken. `subject` is the certificate's.
    """

    authorization: str | None = None
    api_key: str | None = None
    jwt: str | None = None
    jwt_failure: str = ""
    sans: tuple[str, ...] = ()
    proxy_tenant: str | None = None
    source: str = ""
    peer: str = ""
    subject: str = ""

    @property
    def guesses(self) -> bool:
        """Whether it carries what a client may have guessed, so that a refusal counts against its source."""
        return bool((self.authorization and self.jwt is None) or self.api_key)


class Identity(msgspec.Struct, frozen=True):
    """Who asks, how that was proven ("key", "jwt", "certificate", "proxy", "site"), and with which key.

    `site` is another Steersman that says so, `hops` how many have sent it on, `place` where its client is.
    """

    tenant: Tenant
    methods: tuple[str, ...] = ()
    key: ApiKey | None = None
    site: str = ""
    hops: int = 0
    place: str = ""
    #: Its token, where other services are to be asked whether they took it.
    taken: AskTaken | None = None


def hash_key(key: str, secret: bytes | None = None) -> str:
    """The form in which a key is kept, in hex: SHA-256, or HMAC-SHA-256 under the service's secret.

    The plain hash is for keys of 256 random bits, which nobody can guess; under the secret a leaked
    configuration does not even allow to try weaker ones.
    """
    if secret is None:
        return hashlib.sha256(key.encode()).hexdigest()
    return hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class ProxyTrust:
    """The networks whose connections may name a tenant, and the header in which they do (lower-case).

    `peer_header` is where Envoy says the connection's own address, where the client's is another; None
    where it is not.
    """

    header: str
    networks: tuple[IPv4Network | IPv6Network, ...]
    peer_header: str | None = None

    def covers(self, source: str) -> bool:
        """Whether an address lies in one of the networks; what is no address does not."""
        try:
            address = ip_address(source)
        except ValueError:
            return False
        return any(address in network for network in self.networks)


@dataclass(slots=True)
class _Tables:
    keys: dict[str, tuple[Tenant, ApiKey]] = field(default_factory=dict)
    subjects: dict[str, Tenant] = field(default_factory=dict)
    sans: dict[str, Tenant] = field(default_factory=dict)


class Directory:
    """Tenants by what proves them; with `required` false everybody is `anonymous`.

    A key is a `ApiKey`, or the hash of one that is always valid. `claim` is the name of the JWT's claim, for
    messages and for who reads the token; None where no JWT is believed.
    """

    def __init__(
        self,
        tenants: Iterable[tuple[Tenant, Iterable[ApiKey | str]]],
        *,
        required: bool,
        anonymous: Tenant = ANONYMOUS,
        secret: bytes | None = None,
        claim: str | None = None,
        proxy: ProxyTrust | None = None,
    ) -> None:
        self.required = required
        self.anonymous = anonymous
        self.claim = claim
        self.proxy = proxy
        self.tenants: dict[str, Tenant] = {}
        self._secret = secret
        self._known = _Tables()
        for tenant, keys in tenants:
            self.tenants[tenant.name] = tenant
            for each in keys:
                key = ApiKey(each) if isinstance(each, str) else each
                self._known.keys[key.hash] = (tenant, key)
            if tenant.jwt_subject is not None:
                self._known.subjects[tenant.jwt_subject] = tenant
            self._known.sans.update(dict.fromkeys(tenant.certificate_sans, tenant))

    def identify(self, evidence: Credentials, *, now_s: float) -> Identity | Reject:
        """Who sent a request, by all it carries; Reject is 401. `now_s`: unix time, for keys' validity."""
        if not self.required:
            return Identity(self.anonymous)
        proven: dict[str, Tenant] = {}
        for method, found in (
            ("proxy", self._by_proxy(evidence)),
            ("certificate", self._by_certificate(evidence)),
            ("jwt", self._by_jwt(evidence)),
        ):
            if isinstance(found, Reject):
                return found
            if found is not None:
                proven[method] = found
        key: ApiKey | None = None
        if evidence.jwt is not None and self.claim is not None:
            evidence = msgspec.structs.replace(evidence, authorization=None)
        if evidence.authorization is not None or evidence.api_key or not proven:
            answer = self._by_key(evidence, now_s)
            if isinstance(answer, Reject):
                return answer
            proven["key"], key = answer
        tenant, *others = proven.values()
        if any(other is not tenant for other in others):
            return Error.IDENTITY_CONFLICT.reject(proofs=" and ".join(proven))
        return Identity(tenant, tuple(proven), key)

    def _by_proxy(self, evidence: Credentials) -> Tenant | Reject | None:
        name = evidence.proxy_tenant
        # Envoy strips the header of others; this holds too where its configuration is not ours.
        if name is None or self.proxy is None or not self.proxy.covers(evidence.peer or evidence.source):
            return None
        return self.tenants.get(name) or Error.INVALID_API_KEY.reject("the proxy names an unknown tenant")

    def _by_certificate(self, evidence: Credentials) -> Tenant | Reject | None:
        tenants = [self._known.sans[san] for san in evidence.sans if san in self._known.sans]
        if any(tenant is not tenants[0] for tenant in tenants):
            return Error.IDENTITY_CONFLICT.reject("the client certificate's names are different tenants'")
        return tenants[0] if tenants else None

    def _by_jwt(self, evidence: Credentials) -> Tenant | Reject | None:
        if evidence.jwt is None or self.claim is None:
            return None
        return self._known.subjects.get(evidence.jwt) or Error.INVALID_API_KEY.reject(
            f"the token's claim {self.claim!r} is no tenant's"
        )

    def _by_key(self, evidence: Credentials, now_s: float) -> tuple[Tenant, ApiKey] | Reject:
        sent = evidence.api_key or None
        if evidence.authorization is not None:
            scheme, _, credentials = evidence.authorization.partition(" ")
            if scheme.lower() != "bearer" or not credentials.strip():
                return Error.INVALID_API_KEY.reject("the Authorization header is not 'Bearer KEY'")
            bearer = credentials.strip()
            if sent is not None and sent != bearer:
                message = "Authorization and x-api-key carry different keys; send one"
                return Error.INVALID_API_KEY.reject(message)
            sent = bearer
        if not sent:
            message = f"{_certificate(evidence)}no API key; send 'Authorization: Bearer KEY'"
            return Error.INVALID_API_KEY.reject(message)
        found = self._lookup(sent) if len(sent) <= KEY_BYTES_MAX else None
        if found is None:
            # What looks like a token (three parts) was meant as one: Envoy says what is wrong with it.
            if self.claim is not None and evidence.jwt_failure and sent.count(".") == 2:
                return Error.INVALID_API_KEY.reject(f"the token is not valid: {evidence.jwt_failure}")
            return Error.INVALID_API_KEY.reject()
        key = found[1]
        if key.revoked:
            return Error.INVALID_API_KEY.reject("this API key is revoked")
        if key.not_before is not None and now_s < key.not_before:
            return Error.INVALID_API_KEY.reject("this API key is not valid yet")
        if key.expires is not None and now_s >= key.expires:
            return Error.INVALID_API_KEY.reject("this API key has expired")
        return found

    def _lookup(self, sent: str) -> tuple[Tenant, ApiKey] | None:
        digests = [hash_key(sent)]
        if self._secret is not None:
            digests.append(hash_key(sent, self._secret))
        for digest in digests:
            found = self._known.keys.get(digest)
            if found is not None and hmac.compare_digest(found[1].hash, digest):
                return found
        return None


def _certificate(evidence: Credentials) -> str:
    """What to say first to who has shown a certificate that names nobody here."""
    names = ", ".join(evidence.sans) or evidence.subject
    if not names:
        return ""
    said = names if len(names) <= NAMES_SAID_MAX else names[:NAMES_SAID_MAX] + "…"
    return f"the client certificate ({said}) is in no tenant's certificate_sans, and there is "
