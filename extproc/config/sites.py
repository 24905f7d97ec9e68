"""Sites in the file: who this one is, which others it knows, and pools that are another site's gateway."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from extproc.config.section import Section
from extproc.config.types import Name, Network


class SitePeer(Section):
    """Another site, and the keys that both share."""

    name: Name
    """What that site calls itself (its `site.name`)."""
    keys_file: str = Field(min_length=1)
    """The keys between this site and that one: 'ID SECRET' a line, which both have and nobody else; or this
    site's 'ID ed25519-private KEY' and that one's 'ID ed25519-public KEY' (docs/sites.md). At most 8; the
    first that can signs. Read again when it changes, so that keys can be changed without a stop."""
    forwards: bool = False
    """Whether it may send its tenants' requests on to this one, and ask what there is here."""
    tenant: Name | None = None
    """The tenant here whose its requests are that name one that is not known here; they get 401 when left
    out."""


class PlaceConfig(Section):
    """Where clients are."""

    name: Name
    """What it is called, in figures as well."""
    values: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(default=[], max_length=256)
    """What the header says of clients there, such as country codes; the case does not count."""
    networks: list[Network] = Field(default=[], max_length=4096)
    """The addresses of clients there; of several that hold an address the narrowest counts."""
    regions: list[Name] | None = Field(default=None, min_length=1, max_length=64)
    """The only `endpoints[].region` that serve clients there, of those that their tenant may use; any when
    left out."""
    tier: Literal["edge", "centre"] | None = None
    """The tier that serves clients there while it can (of an edge's pool that spills to a site); as
    `spill.tiers` says when left out."""


class PlacesConfig(Section):
    """Where clients are, by a header or by their address."""

    header: str | None = Field(default=None, pattern="^[a-z0-9-]{1,64}$")
    """A header in which proxies of `gateway.client_address.networks` say it, such as a CDN's `cf-ipcountry`;
    what others say in it is taken away. It counts before the address."""
    known: list[PlaceConfig] = Field(min_length=1, max_length=64)
    """The places. What is in none is bound to nothing."""


class SiteConfig(Section):
    """This site among others, each with a Steersman of its own."""

    name: Name
    """What this site is called by the others; no two have the same."""
    tier: Literal["edge", "centre"] = "centre"
    """An edge serves what is near and simple, and sends on what a pool's `spill.tiers` says; a centre goes by
    `spill` as it is elsewhere."""
    hops_max: int = Field(default=1, ge=1, le=4)
    """How many gateways may send a request on, one after the other; then it is served, or gets 508."""
    clock_leeway_s: float = Field(default=90.0, ge=1.0, le=600.0)
    """How far the other sites' clocks may differ from this one's; what is signed holds for 30 s and this."""
    peers: list[SitePeer] = Field(default=[], max_length=64)
    """The other sites."""
    places: PlacesConfig | None = None
    """Where clients are, and what follows of it; nobody asks when left out."""


class RemotePool(Section):
    """A pool whose endpoints are the gateway (Envoy) of another site."""

    kind: Literal["steersman"] = "steersman"
    """What is there."""
    site: Name
    """Which of `site.peers` it is."""


class TiersConfig(Section):
    """When a request leaves the edge for the centre. Simple ones stay, complex ones go, in between times
    decide; where there is no replica on one side, the other serves (docs/sites.md)."""

    prompt_tokens_simple: int = Field(default=1_000, ge=0, le=10_000_000)
    """Simple: a prompt of no more tokens, and the next two settings as well."""
    output_tokens_simple: int = Field(default=256, ge=0, le=10_000_000)
    """Simple: no more output expected."""
    complexity_simple: float = Field(default=0.35, ge=0.0, le=1.0)
    """Simple: no higher score by the classifier of `families`, 0 to 1."""
    prompt_tokens_complex: int = Field(default=6_000, ge=0, le=10_000_000)
    """Complex: a prompt of more tokens, or one of the next two settings."""
    output_tokens_complex: int = Field(default=2_048, ge=0, le=10_000_000)
    """Complex: more output expected."""
    complexity_complex: float = Field(default=0.7, ge=0.0, le=1.0)
    """Complex: a higher score."""
    sooner_ms: float = Field(default=250.0, ge=0.0, le=600_000.0)
    """In between: the centre must be done so much sooner, the way included."""
    sooner_share: float = Field(default=0.25, ge=0.0, le=1.0)
    """And by this share of the whole time here."""
    back_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Requests of a kind that went come back once the gain is below this share of that."""
    wait_ms: float = Field(default=500.0, ge=0.0, le=600_000.0)
    """A place is full where a request would begin later than this."""
    cost_per_s: float | None = Field(default=None, ge=0.0, le=1e9)
    """What a second sooner may cost more, by `price`; any price when left out."""
    stays: list[Name] = Field(default=[], max_length=8)
    """Service classes that are served here while a replica is ready."""
    goes: list[Name] = Field(default=[], max_length=8)
    """Service classes that are served in the centre while it can."""
