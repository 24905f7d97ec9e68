"""Bodies that wrap another route's: SageMaker's /invocations and Vertex AI's /vertex, as TGI serves them.

Owns which of the routes a body is of, and nothing of what is in it.
"""

from __future__ import annotations

from typing import Any

import msgspec

_NOTHING = (msgspec.Raw(), msgspec.Raw(b"null"))


class _Fields(msgspec.Struct):
    inputs: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


class _Instances(msgspec.Struct):
    instances: list[msgspec.Raw] | None = None


_fields = msgspec.json.Decoder(_Fields)
_instances = msgspec.json.Decoder(_Instances)


def wrapped_kind(body: Any) -> str:
    """ "generate", "chat" or "completion", in TGI's own order; the first for what is none, which says why."""
    fields = _fields.decode(body)
    if fields.inputs in _NOTHING:
        if fields.messages not in _NOTHING:
            return "chat"
        if fields.prompt not in _NOTHING:
            return "completion"
    return "generate"


def instances(body: bytes) -> list[msgspec.Raw]:
    """The requests in a body of Vertex's; empty where it has none."""
    return _instances.decode(body).instances or []
