"""Bodies that wrap another route's: SageMaker's /invocations and Vertex AI's /vertex, as TGI serves them.

Owns which of the routes a body is of, and nothing of what is in it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from extproc.core.prompts import SEQUENCES_MAX, elements

_NOTHING = (msgspec.Raw(), msgspec.Raw(b"null"))


class _Fields(msgspec.Struct):
    inputs: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


class _Instances(msgspec.Struct):
    instances: msgspec.Raw = msgspec.Raw()


_fields = msgspec.json.Decoder(_Fields)
_raws = msgspec.json.Decoder(list[msgspec.Raw])
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


def instances(body: bytes) -> list[msgspec.Raw] | None:
    """The requests in a body of Vertex's; empty where it has none, None for more than anybody may ask for.

    Raises msgspec.MsgspecError on what is no list.
    """
    raw = _instances.decode(body).instances
    if raw in _NOTHING:
        return []
    # Counted first: a body holds two million of them.
    return _raws.decode(raw) if elements(raw) < SEQUENCES_MAX else None
