"""Our subset of xDS is Envoy's: the same numbers and types, so the same bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core.v3 import Address, HealthStatus, Locality, Node, SocketAddress
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse
from envoy_data_plane.google.rpc import Status
from google.protobuf.descriptor import FieldDescriptor

from extproc._pb import discovery_pb2 as pb

THEIRS = (
    Node,
    Status,
    DiscoveryRequest,
    DiscoveryResponse,
    SocketAddress,
    Address,
    Endpoint,
    LbEndpoint,
    Locality,
    LocalityLbEndpoints,
    ClusterLoadAssignment,
)
#: Fields of ours that hold a message as the bytes it was serialised to.
ASSEMBLED = {("LocalityLbEndpoints", "lb_endpoints"), ("ClusterLoadAssignment", "endpoints")}
TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_MESSAGE: "message",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_BYTES: "bytes",
}


def test_every_message_is_compared() -> None:
    """A message added to the file must be added above."""
    assert set(pb.DESCRIPTOR.message_types_by_name) == {theirs.__name__ for theirs in THEIRS}


@pytest.mark.parametrize("theirs", THEIRS, ids=lambda theirs: theirs.__name__)
def test_numbers_and_types_are_envoys(theirs: Any) -> None:
    """Held against envoy-data-plane, field by field."""
    fields = {field.name: field.metadata["betterproto"] for field in dataclasses.fields(theirs)}
    for ours in pb.DESCRIPTOR.message_types_by_name[theirs.__name__].fields:
        field = fields[ours.name]
        kind = "message" if (theirs.__name__, ours.name) in ASSEMBLED else TYPES[ours.type]
        assert (ours.number, kind, ours.is_repeated) == (field.number, field.proto_type, field.repeated)


def test_health_statuses_are_envoys() -> None:
    """By name and number."""
    assert dict(pb.HealthStatus.items()) == {status.name: status.value for status in HealthStatus}
