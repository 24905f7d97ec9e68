"""Whom the picker chooses among, and what a trusted gateway says of a request."""

from __future__ import annotations

from typing import Any

import envoy_messages as envoy
import pytest
from picker_world import CHAT, KEY, OTHER, A, B, World, head, piece, refused

from extproc.core.contract import DECISION_NAMESPACE, LB_ENDPOINTS_KEY, LB_NAMESPACE
from extproc.wire import ticket
from extproc.wire.picker.codec import address_of
from extproc.wire.picker.exchange import SLO_MS_MAX, PickerExchange
from tests.stand.seals import SEAL


@pytest.mark.parametrize(
    "subset",
    [[B, "9.9.9.9:1"], f"{B},9.9.9.9:1", f" {B} , nonsense", ["10.0.0.2"], "10.0.0.2", [OTHER, B, B]],
)
def test_the_choice_is_of_the_subset(subset: Any) -> None:
    """A list or a text, with ports or without; endpoints of other pools do not count."""
    _, (first, *_) = World().decide(subset=subset)
    assert envoy.metadata(first, LB_NAMESPACE) == {LB_ENDPOINTS_KEY: B}


@pytest.mark.parametrize("subset", [[], "", ["9.9.9.9:1"], ["nonsense"], [OTHER], "9.9.9.9"])
def test_a_subset_without_anybody_is_503(subset: Any) -> None:
    """Present and empty is not absent."""
    exchange = PickerExchange(World().picker)
    exchange.receive(head(subset=subset))
    status, body, headers = refused(exchange.receive(piece(CHAT, end=True)))
    assert (status, body["error"]["code"]) == (503, "no_ready_endpoint")
    assert headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoint"
    assert "retry-after" in headers


def test_a_clients_own_hint_is_none() -> None:
    """Only the metadata counts; the header is removed."""
    _, (first, *_) = World().decide(KEY, ("x-gateway-destination-endpoint-subset", "9.9.9.9:1"))
    assert A in envoy.metadata(first, LB_NAMESPACE)[LB_ENDPOINTS_KEY]


def test_strangers_of_the_subset_join_only_where_they_may() -> None:
    """They are told with the request's model and tenant, and only what names a port."""
    world = World(discover=True)
    world.decide(subset=[B, "9.9.9.9:1", "10.0.0.2"])
    assert world.joined == [("m", "acme", (B, "9.9.9.9:1"))]
    closed = World()
    closed.decide(subset=[B, "9.9.9.9:1"])
    assert closed.joined == []


def test_addresses_have_one_spelling() -> None:
    """As the configuration's; what is none is empty."""
    assert address_of("[0:0::1]:080") == "[::1]:80"
    assert address_of("fe80::1") == "[fe80::1]"
    assert [address_of(name) for name in ("", "host:80", "10.0.0.1:0", "1.2.3", "::1:")] == [""] * 5


def test_headers_of_a_trusted_gateway() -> None:
    """Tenant, class and targets; bounded, and nonsense is none."""
    world = World(required=False, trust_headers=True, objectives={"chat": "premium"})
    about = [
        ("x-llm-d-inference-fairness-id", "acme"),
        ("x-llm-d-inference-objective", "chat"),
        ("x-llm-d-slo-ttft-ms", "250"),
        ("x-llm-d-slo-tpot-ms", "99999999999999999999"),
    ]
    exchange, (first, *_) = world.decide(*about)
    reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
    assert reservation is not None
    assert (reservation.tenant, reservation.service_class) == ("acme", "premium")
    entry = world.scheduler.ledger.get(reservation.id)
    assert entry is not None
    assert entry.job.plan.tpot_target_ms == 100
    exchange.close()
    _, (first, *_) = world.decide(
        ("x-llm-d-inference-fairness-id", "nobody"),
        ("x-llm-d-inference-objective", "unknown"),
        ("x-llm-d-slo-ttft-ms", "-1"),
        ("x-llm-d-slo-tpot-ms", str(SLO_MS_MAX + 1)),
    )
    reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
    assert reservation is not None
    assert (reservation.tenant, reservation.service_class) == ("anonymous", "standard")
    entry = world.scheduler.ledger.get(reservation.id)
    assert entry is not None
    assert entry.job.plan.tpot_target_ms == SLO_MS_MAX
    twice = [("x-llm-d-inference-fairness-id", "acme")] * 2
    assert refused(PickerExchange(world.picker).receive(head(*twice)))[0] == 400


def test_headers_by_the_extensions_own_names() -> None:
    """A gateway that speaks to the extension's picker has other names; llm-d's are nobody's then."""
    world = World(required=False, trust_headers=True, header_names="gateway", objectives={"chat": "premium"})
    exchange, (first, *_) = world.decide(
        ("x-gateway-inference-fairness-id", "acme"),
        ("x-gateway-inference-objective", "chat"),
        ("x-slo-ttft-ms", "250"),
        ("x-slo-tpot-ms", "70"),
    )
    reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
    assert reservation is not None
    assert (reservation.tenant, reservation.service_class) == ("acme", "premium")
    entry = world.scheduler.ledger.get(reservation.id)
    assert entry is not None
    assert entry.job.plan.tpot_target_ms == 70
    exchange.close()
    _, (first, *_) = world.decide(("x-llm-d-inference-fairness-id", "acme"))
    reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
    assert reservation is not None
    assert reservation.tenant == "anonymous"


def test_headers_of_anybody_else_are_not_read() -> None:
    """Law 7: without the configuration's word a client's class and tenant are nothing."""
    for world in (World(required=False), World(trust_headers=True)):
        extra = (KEY,) if world.processor.directory.required else ()
        name = "acme" if extra else "anonymous"
        _, (first, *_) = world.decide(*extra, ("x-llm-d-inference-fairness-id", "globex"))
        reservation = ticket.read(envoy.metadata(first, DECISION_NAMESPACE)["ticket"], SEAL)
        assert reservation is not None
        assert (reservation.tenant, reservation.service_class) == (name, "standard")


def test_its_keys_are_the_engines_where_they_are_not_ours() -> None:
    """With `auth: none` the Authorization header goes on."""
    _, (first, *_) = World(required=False).decide(KEY)
    assert "authorization" not in first.request_headers.response.header_mutation.remove_headers


def test_the_route_is_chosen_again_where_wanted() -> None:
    """By the configuration's word alone."""
    _, (first, *_) = World(clear_route_cache=True).decide()
    assert first.request_headers.response.clear_route_cache
