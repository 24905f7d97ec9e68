"""Which web pages may call the gateway: Envoy's own filter answers their preflights, before anybody is asked.

Owns what a page may send and read. Without the setting no preflight is answered, and browsers send nothing.
"""

from __future__ import annotations

from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import CorsPolicy
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher

from extproc.config.model import Cors
from extproc.core import contract

CORS_FILTER = "envoy.filters.http.cors"
METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
#: Response headers that a page may read beside the usual ones.
EXPOSED = (
    "retry-after",
    "x-request-id",
    *contract.RATE_LIMIT_HEADERS,
    *contract.FAMILY_HEADERS,
    contract.SPILLED_HEADER,
    contract.CACHE_HEADER,
    contract.REASON_HEADER,
)


def cors(settings: Cors) -> CorsPolicy:
    """The virtual host's policy; without credentials, since keys come in a header of their own."""
    return CorsPolicy(
        allow_origin_string_match=[_origin(each) for each in settings.origins],
        allow_methods=METHODS,
        allow_headers=", ".join(settings.headers),
        expose_headers=", ".join(EXPOSED),
        max_age=str(settings.max_age_s),
        # A preflight of another page gets the service's own refusal, and its browser stops there.
        forward_not_matching_preflights=True,
    )


def _origin(origin: str) -> StringMatcher:
    if origin == "*":
        return StringMatcher(safe_regex=RegexMatcher(regex=".*"))
    return StringMatcher(exact=origin)
