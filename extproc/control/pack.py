"""The small shapes that every resource is made of: packed extensions, addresses, durations.

Owns spelling only; what is configured with them is the other modules'.
"""

from __future__ import annotations

from datetime import timedelta

from betterproto2 import Message
from envoy_data_plane.envoy.config.core.v3 import Address, Pipe, SocketAddress, TypedExtensionConfig
from envoy_data_plane.google.protobuf import Any

from extproc.addresses import split


def packed(message: Message) -> Any:
    """A message as `google.protobuf.Any`."""
    return Any.pack(message)


def extension(name: str, message: Message) -> TypedExtensionConfig:
    """A named extension with its configuration."""
    return TypedExtensionConfig(name=name, typed_config=packed(message))


def ms(value: int) -> timedelta:
    """Milliseconds as a duration."""
    return timedelta(milliseconds=value)


def address(text: str) -> Address:
    """`ip:port`, `[ip6]:port` or `unix:/path` as Envoy's address."""
    if text.startswith("unix:"):
        return Address(pipe=Pipe(path=text.removeprefix("unix:")))
    host, port = split(text)
    return Address(socket_address=SocketAddress(address=host, port_value=port))
