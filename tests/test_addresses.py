"""One way to take an address apart, and one spelling."""

from __future__ import annotations

import pytest

from extproc import addresses


@pytest.mark.parametrize(
    ("text", "spelled", "host", "port"),
    [
        ("10.0.0.1:8080", "10.0.0.1:8080", "10.0.0.1", 8080),
        ("10.0.0.1:08080", "10.0.0.1:8080", "10.0.0.1", 8080),
        ("[2001:DB8:0::1]:1", "[2001:db8::1]:1", "2001:DB8:0::1", 1),
        ("2001:db8::1:65535", "[2001:db8::1]:65535", "2001:db8::1", 65535),
    ],
)
def test_an_address_has_one_spelling(text: str, spelled: str, host: str, port: int) -> None:
    """However it was written; and its parts are those of the spelling."""
    assert addresses.canonical(text) == spelled
    assert addresses.canonical(spelled) == spelled
    assert addresses.split(text) == (host, port)
    assert addresses.port_of(spelled) == port
    assert addresses.joined(str(addresses.ip_of(spelled)), port) == spelled


@pytest.mark.parametrize("text", ["", "10.0.0.1", ":", "10.0.0.1:", "10.0.0.1:http", "10.0.0.1:８０", "h:+1"])
def test_what_has_no_port_says_so(text: str) -> None:
    """Digits alone are a port, and those of ASCII."""
    with pytest.raises(addresses.NoPortError):
        addresses.split(text)


@pytest.mark.parametrize(
    "text", ["10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:000080", "h:80", "[fe80::1%eth0]:80"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """Ports out of range, host names, zone ids."""
    with pytest.raises(ValueError, match=r".+"):
        addresses.canonical(text)
