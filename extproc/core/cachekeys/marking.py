"""A hit's usage that says so: `usage.prompt_tokens_details.cached_tokens`, where a tenant wants it.

Owns the one field in which such a hit differs from its miss; every other byte of a value stays. Only OpenAI's
dialect has such a field.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_value: Final = msgspec.json.Decoder(dict[str, Any]).decode


def marked(body: bytes, *, stream: bool) -> bytes:
    """An answer whose prompt tokens are all told as cached; as it is where it tells no usage."""
    if not stream:
        return _marked(body)
    lines = body.split(b"\n")
    for at, line in enumerate(lines):
        if line.startswith(b"data:") and b'"usage"' in line:
            data = line[5:].strip()
            if data.startswith(b"{"):
                lines[at] = b"data: " + _marked(data)
    return b"\n".join(lines)


def _marked(text: bytes) -> bytes:
    fields = _fields(text)
    raw = fields.get("usage")
    if raw is None or not bytes(raw).lstrip().startswith(b"{"):
        return text
    usage = _value(raw)
    prompt, details = usage.get("prompt_tokens"), usage.get("prompt_tokens_details")
    if not isinstance(prompt, int):
        return text
    usage["prompt_tokens_details"] = {
        **(details if isinstance(details, dict) else {}),
        "cached_tokens": prompt,
    }
    fields["usage"] = msgspec.Raw(msgspec.json.encode(usage))
    return msgspec.json.encode(fields)
