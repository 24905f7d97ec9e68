"""Which replica holds a response: whose it is, and how many are remembered."""

from __future__ import annotations

from extproc.core.errors import Error
from extproc.core.outcome import Reject
from extproc.core.responses import HeldResponse, HeldResponses

ACME, GLOBEX = HeldResponse("acme", "m", "10.0.0.1:1"), HeldResponse("globex", "m", "10.0.0.2:1")


def test_a_tenants_own_are_there_and_no_others() -> None:
    """Another tenant's and one that never was get the same words, but for the id."""
    held = HeldResponses()
    held.put("resp_1", ACME)
    assert held.of("acme", "resp_1") == ACME
    assert held.of("globex", "resp_1") == Error.RESPONSE_NOT_FOUND.reject(id="resp_1")
    assert held.of("globex", "resp_2") == Error.RESPONSE_NOT_FOUND.reject(id="resp_2")


def test_who_has_an_id_first_keeps_it() -> None:
    """A client that makes an engine repeat another's id gets nothing by it."""
    held = HeldResponses()
    held.put("resp_1", ACME)
    held.put("resp_1", GLOBEX)
    assert held.of("acme", "resp_1") == ACME
    assert isinstance(held.of("globex", "resp_1"), Reject)


def test_the_oldest_are_forgotten_first() -> None:
    """Of a tenant that has too many its own, of all the oldest; nothing is left of who has none."""
    held = HeldResponses(responses_max=5, per_tenant_max=3)
    held.put("resp_g", GLOBEX)
    for number in range(4):
        held.put(f"resp_{number}", ACME)
    assert isinstance(held.of("acme", "resp_0"), Reject)
    assert held.of("globex", "resp_g") == GLOBEX
    for tenant in ("x", "y"):
        held.put(f"resp_{tenant}", HeldResponse(tenant, "m", "10.0.0.3:1"))
    assert isinstance(held.of("globex", "resp_g"), Reject)
    assert len(held) == 5
    assert "globex" not in held._of_tenant
