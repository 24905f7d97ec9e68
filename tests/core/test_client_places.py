"""Where clients are: the header counts before the address, the narrowest network before the others."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core import client_places
from extproc.core.client_places import NOWHERE, ClientPlaces, Place
from extproc.core.tenant import Tenant

EU, US, OFFICE = Place("eu", frozenset({"eu-west"})), Place("us"), Place("office")
KNOWN = ClientPlaces(
    [
        (EU, ["DE", "fr"], [ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")]),
        (US, ["US"], [ip_network("10.1.0.0/16")]),
        (OFFICE, [], [ip_network("10.1.2.3/32"), ip_network("::/0")]),
    ],
    header="cf-ipcountry",
)


@pytest.mark.parametrize(
    ("values", "source", "place"),
    [
        ({"cf-ipcountry": "de"}, "10.1.2.3", EU),
        ({"cf-ipcountry": " FR "}, "", EU),
        ({"cf-ipcountry": "T1"}, "10.1.9.9", US),
        ({"x-other": "DE"}, "192.0.2.1", None),
        ({}, "10.9.9.9", EU),
        ({}, "10.1.2.3", OFFICE),
        ({}, "2001:db8::1", EU),
        ({}, "2001:db9::1", OFFICE),
        ({}, "nonsense", None),
        ({}, "", None),
    ],
)
def test_where_a_client_is(values: dict[str, str], source: str, place: Place | None) -> None:
    """What the header says, else what the address does; what neither knows is nowhere."""
    assert KNOWN.of(values, source) is place
    assert NOWHERE.of(values, source) is None


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_the_narrowest_network_counts(drawn: list[tuple[int, int]], number: int) -> None:
    """Whatever networks there are: as by looking at each of them."""
    networks = sorted({ip_network((each, bits), strict=False) for each, bits in drawn})
    places = ClientPlaces([(Place(str(each)), [], [each]) for each in networks])
    address = ip_address(number)
    holding = [each for each in networks if address in each]
    found = places.of({}, str(address))
    narrowest = max(holding, key=lambda each: each.prefixlen, default=None)
    assert (found and found.name) == (narrowest and str(narrowest))


def test_regions_are_a_tenants_and_the_places() -> None:
    """A place opens no region to a tenant, and one without regions closes none."""
    assert EU.bound(None) == {"eu-west"}
    assert EU.bound(frozenset({"eu-west", "us-east"})) == {"eu-west"}
    assert EU.bound(frozenset({"us-east"})) == frozenset()
    assert US.bound(frozenset({"us-east"})) == {"us-east"}


def test_a_tenant_at_a_place_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all its requests, until the tenant is another; never for another place or tenant."""
    acme = Tenant(name="acme", regions=frozenset({"eu-west", "us-east"}))
    there = KNOWN.served(acme, EU)
    assert (there.name, there.place, there.regions) == ("acme", "eu", frozenset({"eu-west"}))
    assert KNOWN.served(acme, EU) is there
    assert (KNOWN.served(acme, US).place, KNOWN.served(acme, US).regions) == ("us", acme.regions)
    changed = Tenant(name="acme", explain=True)
    assert KNOWN.served(changed, EU) == Tenant(
        name="acme", explain=True, place="eu", regions=frozenset({"eu-west"})
    )
    assert KNOWN.served(Tenant(name="other"), EU).name == "other"
    monkeypatch.setattr(client_places, "SERVED_MAX", 1)
    assert KNOWN.served(acme, EU) == there
    assert KNOWN.served(acme, OFFICE).place == "office"
