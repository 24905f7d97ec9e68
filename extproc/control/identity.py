"""The filter that asks who it is on the headers, before a body is read.

Owns which requests are asked so: all but those whose body is small and which carry something that may prove
a tenant. Of the others Envoy would hold up to a whole body for anybody. For these few bytes a second call of
the service would cost more than it saves, and the decision's own call asks the same.
"""

from __future__ import annotations

from dataclasses import replace

from betterproto2 import Message
from envoy_data_plane.envoy.extensions.common.matching.v3 import ExtensionWithMatcher
from envoy_data_plane.envoy.extensions.filters.common.matcher.action.v3 import SkipFilter
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    ProcessingModeBodySendMode,
)
from envoy_data_plane.envoy.extensions.matching.common_inputs.ssl.v3 import DnsSanInput, UriSanInput
from envoy_data_plane.envoy.type.matcher.v3 import HttpRequestHeaderMatchInput
from envoy_data_plane.xds.core.v3 import TypedExtensionConfig
from envoy_data_plane.xds.type.matcher.v3 import (
    Matcher,
    MatcherMatcherList,
    MatcherMatcherListFieldMatcher,
    MatcherMatcherListPredicate,
    MatcherMatcherListPredicatePredicateList,
    MatcherMatcherListPredicateSinglePredicate,
    MatcherOnMatch,
    RegexMatcher,
    RegexMatcherGoogleRe2,
    StringMatcher,
)

from extproc.config.model import Config
from extproc.control.pack import extension, packed

IDENTITY_FILTER = "steersman.identity"
#: Anything at all.
_ANY = ".+"


def asks_first(config: Config, decision: ExternalProcessor) -> ExtensionWithMatcher:
    """The decision's filter once more, of the headers alone; skipped where the body is soon here."""
    assert decision.processing_mode is not None
    asking = replace(
        decision,
        processing_mode=replace(decision.processing_mode, request_body_mode=ProcessingModeBodySendMode.NONE),
        stat_prefix="identity",
        # It changes no header and holds nobody.
        mutation_rules=None,
        max_message_timeout=None,
    )
    skip = MatcherOnMatch(action=_xds("skip", SkipFilter()))
    return ExtensionWithMatcher(
        xds_matcher=Matcher(
            matcher_list=MatcherMatcherList(
                matchers=[MatcherMatcherListFieldMatcher(predicate=_soon_here(config), on_match=skip)]
            )
        ),
        extension_config=extension("envoy.filters.http.ext_proc", asking),
    )


def up_to(bound: int) -> str:
    """A regular expression for the decimal numbers from 0 to a bound, without leading zeros.

    >>> up_to(16384)
    '[0-9]{1,4}|1[0-5][0-9]{3}|16[0-2][0-9]{2}|163[0-7][0-9]{1}|1638[0-4]'
    """
    digits = str(bound)
    parts = [f"[0-9]{{1,{len(digits) - 1}}}"] if len(digits) > 1 else []
    for at, digit in enumerate(digits):
        least, last = (1 if at == 0 and len(digits) > 1 else 0), at == len(digits) - 1
        most = int(digit) if last else int(digit) - 1
        if most >= least:
            rest = "" if last else f"[0-9]{{{len(digits) - at - 1}}}"
            parts.append(f"{digits[:at]}[{least}-{most}]{rest}")
    return "|".join(parts)


def _soon_here(config: Config) -> MatcherMatcherListPredicate:
    small = _header("content-length", up_to(config.gateway.body_bytes_unasked_max))
    proofs = _proofs(config)
    return small if proofs is None else _all(small, proofs)


def _proofs(config: Config) -> MatcherMatcherListPredicate | None:
    """What may prove a tenant; None where nothing is asked, or the connection has proven it."""
    gateway = config.gateway
    tls = gateway.tls
    if gateway.auth == "none" or (tls is not None and tls.require_client_certificate):
        return None
    names = ["authorization", "x-api-key"]
    if gateway.trusted_proxy is not None:
        names.append(gateway.trusted_proxy.header)
    found = [_header(name, _ANY) for name in names]
    if tls is not None and tls.client_ca is not None:
        found += [_matches("uri_san", UriSanInput(), _ANY), _matches("dns_san", DnsSanInput(), _ANY)]
    return MatcherMatcherListPredicate(or_matcher=MatcherMatcherListPredicatePredicateList(predicate=found))


def _all(*predicates: MatcherMatcherListPredicate) -> MatcherMatcherListPredicate:
    return MatcherMatcherListPredicate(
        and_matcher=MatcherMatcherListPredicatePredicateList(predicate=list(predicates))
    )


def _header(name: str, regex: str) -> MatcherMatcherListPredicate:
    return _matches("header", HttpRequestHeaderMatchInput(header_name=name), regex)


def _matches(name: str, read: Message, regex: str) -> MatcherMatcherListPredicate:
    matcher = StringMatcher(safe_regex=RegexMatcher(google_re2=RegexMatcherGoogleRe2(), regex=regex))
    return MatcherMatcherListPredicate(
        single_predicate=MatcherMatcherListPredicateSinglePredicate(
            input=_xds(name, read), value_match=matcher
        )
    )


def _xds(name: str, message: Message) -> TypedExtensionConfig:
    # The same as Envoy's own, of another package.
    return TypedExtensionConfig(name=name, typed_config=packed(message))
