"""What is wrong with a file's sites, across its sections; and whose requests come back from them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING, Literal

from extproc.config.check_tenants import TAKEN_PREFIXES
from extproc.config.locations import Loc, repeats
from extproc.config.pools import Discovery
from extproc.config.sites import TiersConfig
from extproc.meant import meant

if TYPE_CHECKING:
    from extproc.config.model import Config
    from extproc.config.pools import PoolConfig
    from extproc.core.client_places import ClientPlaces
    from extproc.core.tiers import TierRule

_MS = 1_000_000


def tier_rule(tiers: TiersConfig, *, hops_max: int) -> TierRule:
    """The rule by which requests leave the edge."""
    # A check of a file imports nothing that decides.
    from extproc.core.tiers import TierRule

    same = ("prompt_tokens", "output_tokens", "complexity")
    bounds = {
        f"{name}_{kind}": getattr(tiers, f"{name}_{kind}") for name in same for kind in ("simple", "complex")
    }
    return TierRule(
        **bounds,
        sooner_ns=round(tiers.sooner_ms * _MS),
        sooner_share=tiers.sooner_share,
        back_share=tiers.back_share,
        wait_ns=round(tiers.wait_ms * _MS),
        cost_per_s=tiers.cost_per_s,
        stays=frozenset(tiers.stays),
        goes=frozenset(tiers.goes),
        hops_max=hops_max,
    )


def returns(pool: PoolConfig, there: PoolConfig) -> bool:
    """Whether what fails in another pool can be tried at home: Envoy sends the same request once more, in the
    same version of HTTP."""
    mine, theirs = pool.upstream, there.upstream
    return pool.spill is not None and "auto" not in (mine.http2, theirs.http2) and mine.http2 == theirs.http2


def returning(config: Config) -> list[tuple[PoolConfig, PoolConfig]]:
    """The pools to which others spill, with the pools whose requests come back from there."""
    pools = {pool.name: pool for pool in config.pools}
    return [
        (pools[pool.spill.to], pool)
        for pool in config.pools
        if pool.spill is not None and pool.spill.to in pools and returns(pool, pools[pool.spill.to])
    ]


def site_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Yield (location, message)."""
    site, pools = config.site, {pool.name: pool for pool in config.pools}
    peers = [] if site is None else [peer.name for peer in site.peers]
    if site is not None:
        tenants = [tenant.name for tenant in config.tenants]
        yield from repeats((("site", "peers", i, "name"), name) for i, name in enumerate(peers))
        yield from _places(config)
        for i, peer in enumerate(site.peers):
            if peer.name == site.name:
                yield ("site", "peers", i, "name"), "is this site itself; name another one, or remove it"
            if peer.tenant is not None and peer.tenant not in tenants:
                known = ", ".join(tenants) or "none"
                message = f"no tenant {peer.tenant!r}; there are {known}{meant(peer.tenant, tenants)}"
                yield ("site", "peers", i, "tenant"), message
    for i, pool in enumerate(config.pools):
        remote = pool.remote
        if remote is not None and remote.site not in peers:
            known = ", ".join(peers) or "none"
            message = (
                f"no site {remote.site!r} among site.peers; there are {known}{meant(remote.site, peers)}"
            )
            yield ("pools", i, "remote", "site"), message
        if remote is not None and config.picker.enabled:
            message = (
                "picker.enabled: other gateways send the clients' own keys there, and nothing signed; "
                "let a service of its own be their picker, or take this pool out"
            )
            yield ("pools", i, "remote"), message
        if remote is not None and pool.scaling is not None:
            yield ("pools", i, "scaling"), "does nothing here: that site scales its own replicas; remove it"
        if pool.spill is not None:
            yield from _tiers(config, i, pool, pools.get(pool.spill.to))
    local = sorted({model for pool in config.pools if pool.remote is None for model in pool.models})
    for i, tenant in enumerate(config.tenants):
        name = tenant.away_model
        if name is None:
            continue
        at: Loc = ("tenants", i, "away_model")
        if not any(pool.remote is not None for pool in config.pools):
            yield at, "does nothing while no pool is another site's (pools[].remote); remove it"
        elif name not in local:
            yield at, f"no pool here serves {name!r}; they serve {', '.join(local)}{meant(name, local)}"
        elif tenant.models is not None and name not in tenant.models:
            yield at, f"{name!r} is not among the tenant's models; add it to tenants[{i}].models"


def _places(config: Config) -> Iterator[tuple[Loc, str]]:
    site, client = config.site, config.gateway.client_address
    if site is None or site.places is None:
        return
    places, at = site.places, ("site", "places")
    if places.header is not None and (client is None or client.source != "x-forwarded-for"):
        message = "nobody may say it; name the proxies that do in gateway.client_address (x-forwarded-for)"
        yield (*at, "header"), message
    if places.header is not None and places.header.startswith(TAKEN_PREFIXES):
        yield (*at, "header"), f"{places.header!r} is the gateway's own; let the proxy use another one"
    known = places.known
    yield from repeats(((*at, "known", i, "name"), each.name) for i, each in enumerate(known))
    for kind in ("values", "networks"):
        yield from repeats(
            ((*at, "known", i, kind, j), value.casefold())
            for i, each in enumerate(known)
            for j, value in enumerate(getattr(each, kind))
        )
    regions = sorted({each.region for pool in config.pools for each in pool.endpoints if each.region})
    # Endpoints that come by themselves bring their regions.
    found = config.telemetry is not None or any(pool.discovery != Discovery() for pool in config.pools)
    spills = any(pool.spill is not None for pool in config.pools)
    for i, each in enumerate(known):
        if each.values and places.header is None:
            yield (*at, "known", i, "values"), "nothing says them; set site.places.header"
        # What another site sends on comes with its place's name.
        if not each.values and not each.networks and not any(peer.forwards for peer in site.peers):
            yield (*at, "known", i), "nobody is there; give it values of the header, or networks"
        if each.tier is not None and (site.tier != "edge" or not spills):
            message = "does nothing: it is for an edge (site.tier: edge) with a pool that spills to a site"
            yield (*at, "known", i, "tier"), message
        for j, name in enumerate(each.regions or ()):
            if name not in regions and not found:
                message = f"no endpoint has region {name!r}; there are {', '.join(regions) or 'none'}"
                yield (*at, "known", i, "regions", j), f"{message}{meant(name, regions)}"


def places_of(config: Config) -> ClientPlaces:
    """Where clients are, as the file says."""
    from extproc.core.client_places import NOWHERE, ClientPlaces, Place

    places = None if config.site is None else config.site.places
    if places is None:
        return NOWHERE
    sides: dict[str | None, Literal["", "here", "there"]] = {None: "", "edge": "here", "centre": "there"}
    return ClientPlaces(
        (
            (
                Place(each.name, None if each.regions is None else frozenset(each.regions), sides[each.tier]),
                each.values,
                map(ip_network, each.networks),
            )
            for each in places.known
        ),
        header=places.header or "",
    )


def _tiers(config: Config, i: int, pool: PoolConfig, there: PoolConfig | None) -> Iterator[tuple[Loc, str]]:
    assert pool.spill is not None
    tiers = pool.spill.tiers
    at: Loc = ("pools", i, "spill", "tiers")
    edge = config.site is not None and config.site.tier == "edge"
    if tiers != TiersConfig() and (there is None or there.remote is None or not edge):
        message = "does nothing: it is for an edge (site.tier: edge) whose pool spills to a site (remote)"
        yield at, message
    yield from ((at, problem) for problem in tier_rule(tiers, hops_max=1).problems())
    names = [each.name for each in config.classes]
    for side in ("stays", "goes"):
        for j, name in enumerate(getattr(tiers, side)):
            if name not in names:
                yield (*at, side, j), f"no class {name!r}; there are {', '.join(names)}{meant(name, names)}"
