"""A client's exception that is a refusal with 429, and what the client was told with it.

Owns how each client library shows one: by attributes alone, so that none of them is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from extproc.core.outcome import QUOTA_EXCEEDED

REFUSED: Final = 429
#: text-generation's exception tells neither status nor headers; it is raised for a 429 that TGI has no word
#: for, which a quota's is.
TGI_REFUSED: Final = "RateLimitExceededError"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The error's code, and the seconds to wait where the client's library shows them."""

    code: str
    retry_after_s: float | None

    @property
    def by_quota(self) -> bool:
        """Whether it is for want of quota, and not of room."""
        return self.code == QUOTA_EXCEEDED


def refusal(error: BaseException) -> Refusal | None:
    """What a client was refused with; None where the error is another one."""
    # huggingface_hub raises one of its own from the one that has the status.
    return _refusal(error) or (_refusal(error.__cause__) if error.__cause__ is not None else None)


def _refusal(error: BaseException) -> Refusal | None:
    if type(error).__name__ == TGI_REFUSED:
        return Refusal(QUOTA_EXCEEDED, None)
    response = getattr(error, "response", None)
    told = (getattr(error, "status_code", None), getattr(error, "status", None))  # openai's, aiohttp's
    if REFUSED not in (*told, getattr(response, "status_code", None)):
        return None
    headers = getattr(error, "headers", None) or getattr(response, "headers", None)
    return Refusal(_code(error), _seconds(headers))


def _code(error: BaseException) -> str:
    """OpenAI's `code`, or the code in the payload that huggingface_hub keeps."""
    payload = getattr(error, "response_error_payload", None)
    if isinstance(payload, Mapping):
        inner = payload.get("error")
        found: Any = inner.get("code") if isinstance(inner, Mapping) else payload.get("error_type")
    else:
        found = getattr(error, "code", None)
    return found if isinstance(found, str) else "unknown"


def _seconds(headers: Any) -> float | None:
    told = headers.get("retry-after") if isinstance(headers, Mapping) else None
    try:
        return None if told is None else float(told)
    except ValueError:
        return None
