"""How Envoy speaks to a pool's replicas: TLS, HTTP versions, headers, and the engine's own key.

Owns the secrets' names and where Envoy has them from. The key is put in by the cluster itself, after every
filter that sees the client's request: neither the access log nor another pool's replica sees it. In mode
`static` Envoy reads it from its file or its environment at its start; in mode `ads` the service tells it, and
a new one is told when it changes. Envoy's dumps show it in neither mode (`[redacted]`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from importlib import resources

from betterproto2 import Message
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import (
    HeaderMutation,
    HeaderMutationRemoveOnMatch,
)
from envoy_data_plane.envoy.config.core.v3 import (
    ConfigSource,
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    TransportSocket,
)
from envoy_data_plane.envoy.extensions.filters.http.credential_injector.v3 import CredentialInjector
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutation as HeaderMutationFilter,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import Mutations
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import UpstreamCodec
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.http.injected_credentials.generic.v3 import Generic
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    GenericSecret,
    SdsSecretConfig,
    Secret,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    TlsParameters,
    TlsParametersTlsProtocol,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions as UpstreamProtocolOptions,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptionsAutoHttpConfig,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

from extproc.config.model import Config
from extproc.config.pools import PoolConfig
from extproc.config.upstream import Upstream, UpstreamKey, UpstreamTls
from extproc.control.pack import extension, packed
from extproc.core import contract
from extproc.core.spill.values import FAILED
from extproc.upstream import SYSTEM_CA

#: An idle connection to an engine is closed after this long. vLLM's server (uvicorn) and llama.cpp's
#: close theirs after 5 s; a request sent into that instant would be reset.
UPSTREAM_IDLE_S = 3

_VERSIONS = {"1.2": TlsParametersTlsProtocol.TLSv1_2, "1.3": TlsParametersTlsProtocol.TLSv1_3}


def protocol_options(pool: PoolConfig, *, keys_from: ConfigSource | None) -> UpstreamProtocolOptions:
    """The versions of HTTP, and what is done to each request on its way. `keys_from` tells the pool's key;
    None: it stands among the bootstrap's secrets."""
    upstream = pool.upstream
    return _with_filters(_versions(upstream), _filters(pool.name, upstream, keys_from))


def crossing_options(
    there: PoolConfig,
    home: PoolConfig,
    *,
    tries_at_home: int = 0,
    first_byte_ms: int,
    keys_from: ConfigSource | None,
) -> UpstreamProtocolOptions:
    """The same of a cluster whose tries are in two pools: the first there and the next ones at home; or, with
    `tries_at_home`, so many at home and then one there.

    Both pools' keys are put in under names of ours, and a script leaves the one that is wanted: a key and a
    header of one pool are not shown to the other, whatever failed.
    """
    filters = [
        _injector(pool.name, pool.upstream.key, keys_from, header=header)
        for pool, header in ((there, contract.KEY_THERE_HEADER), (home, contract.KEY_HOME_HEADER))
        if pool.upstream.key is not None
    ]
    sides = (
        _side(there.upstream, contract.KEY_THERE_HEADER),
        _side(home.upstream, contract.KEY_HOME_HEADER),
    )
    values = {
        "FIRST": sides[1 if tries_at_home else 0],
        "SECOND": sides[0 if tries_at_home else 1],
        "TRIES": str(tries_at_home or 1),
        "FAILED": contract.FAILED_HOME_KEY if tries_at_home else contract.FAILED_THERE_KEY,
        "NOTES_PROVIDER": "false" if tries_at_home else "true",
        "SPILLED": FAILED if tries_at_home else "",
        "FIRST_BYTE_MS": str(first_byte_ms),
    }
    script = Lua(default_source_code=DataSource(inline_string=_crossing_script(values)))
    answers = HeaderMutationFilter(mutations=answer_mutations(provider=there.remote is None))
    filters += [
        _filter("envoy.filters.http.lua", script),
        _filter("envoy.filters.http.header_mutation", answers),
    ]
    return _with_filters(_versions(there.upstream), filters)


def _crossing_script(values: Mapping[str, str]) -> str:
    source = resources.files("extproc.control").joinpath("lua/crossing.lua").read_text(encoding="utf-8")
    ours = {
        name: getattr(contract, name)
        for name in (
            "OBSERVED_NAMESPACE",
            "DECISION_NAMESPACE",
            "SITE_HEADER",
            "PATH_PREFIX_HEADER",
            "PROVIDER_HEADER",
            "PROVIDER_SILENT",
            "PROVIDER_THERE_KEY",
            "FAILED_LATE",
            "FAILED_LOST",
            "SPILLED_HEADER",
            "ANSWERED_MODEL_HEADER",
            "SECOND_MODEL_KEY",
        )
    }
    for name, value in {**ours, **values}.items():
        source = source.replace(f"@{name}@", value)
    return source


def _side(upstream: Upstream, told: str) -> str:
    """How a pool is reached, as a Lua table; its key comes as the header `told`. Names and values are
    printable ASCII, and are quoted alike."""
    key = "nil" if upstream.key is None else json.dumps(upstream.key.header)
    added = ", ".join(f"[{json.dumps(n)}] = {json.dumps(v)}" for n, v in upstream.headers.add.items())
    prefix = json.dumps(upstream.path_prefix or "")
    return f'{{ key = {key}, told = "{told}", prefix = {prefix}, headers = {{{added}}} }}'


def _versions(upstream: Upstream) -> UpstreamProtocolOptions:
    common = HttpProtocolOptions(idle_timeout=timedelta(seconds=UPSTREAM_IDLE_S))
    options = UpstreamProtocolOptions(common_http_protocol_options=common)
    if upstream.http2 == "auto":
        options.auto_config = HttpProtocolOptionsAutoHttpConfig(
            http_protocol_options=Http1ProtocolOptions(), http2_protocol_options=Http2ProtocolOptions()
        )
    elif upstream.http2:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=Http2ProtocolOptions()
        )
    else:
        options.explicit_http_config = HttpProtocolOptionsExplicitHttpConfig(
            http_protocol_options=Http1ProtocolOptions()
        )
    return options


def _with_filters(options: UpstreamProtocolOptions, filters: list[HttpFilter]) -> UpstreamProtocolOptions:
    if filters:
        # What sends a request on is the last of these.
        options.http_filters = [*filters, _filter("envoy.filters.http.upstream_codec", UpstreamCodec())]
    return options


def answer_mutations(*, provider: bool) -> Mutations:
    """Of each answer: what only we may say is removed.

    With `provider` its rate limits are said once more under a name of ours, since the route says the tenant's
    own in their place.
    """
    ours = HeaderMutation(
        remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=contract.OUR_PREFIX))
    )
    said = HeaderMutation(
        append=HeaderValueOption(
            header=HeaderValue(key=contract.PROVIDER_HEADER, value=contract.PROVIDER_FORMAT),
            append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )
    return Mutations(
        response_mutations=[ours, said] if provider else [ours], response_trailers_mutations=[ours]
    )


def transport_socket(upstream: Upstream) -> TransportSocket | None:
    """TLS where the pool has it; None for the clear."""
    if upstream.tls is None:
        return None
    return TransportSocket(
        name="envoy.transport_sockets.tls", typed_config=packed(_tls(upstream.tls, upstream.http2))
    )


def static_secrets(config: Config) -> list[Secret]:
    """Where Envoy reads the keys itself, for the bootstrap. No key stands in it."""
    secrets = []
    for pool in config.pools:
        own = pool.upstream.key
        if own is not None:
            source = (
                DataSource(filename=own.file)
                if own.file is not None
                else DataSource(environment_variable=own.env or "")
            )
            secrets.append(
                Secret(name=contract.key_name(pool.name), generic_secret=GenericSecret(secret=source))
            )
    return secrets


def told_secrets(keys: Mapping[str, str]) -> list[Secret]:
    """The keys by pool as the service tells them. Never to be shown."""
    return [
        Secret(
            name=contract.key_name(pool),
            generic_secret=GenericSecret(secret=DataSource(inline_string=key)),
        )
        for pool, key in keys.items()
    ]


def _filters(pool: str, upstream: Upstream, keys_from: ConfigSource | None) -> list[HttpFilter]:
    filters = []
    mutations = []
    if upstream.path_prefix:
        # It has done its work at the route.
        mutations.append(HeaderMutation(remove=contract.PATH_PREFIX_HEADER))
    if upstream.headers.add:
        # Envoy reads formats here; a percent sign is meant as one.
        mutations += [
            HeaderMutation(
                append=HeaderValueOption(
                    header=HeaderValue(key=name, value=value.replace("%", "%%")),
                    append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
                )
            )
            for name, value in upstream.headers.add.items()
        ]
    if mutations or upstream.key is not None:
        changes = answer_mutations(provider=True)
        changes.request_mutations = mutations
        changed = HeaderMutationFilter(mutations=changes)
        filters.append(_filter("envoy.filters.http.header_mutation", changed))
    if upstream.key is not None:
        filters.append(_injector(pool, upstream.key, keys_from, header=upstream.key.header))
    return filters


def _injector(pool: str, key: UpstreamKey, keys_from: ConfigSource | None, *, header: str) -> HttpFilter:
    secret = SdsSecretConfig(name=contract.key_name(pool))
    if keys_from is not None:
        secret.sds_config = keys_from
    generic = Generic(credential=secret, header=header, header_value_prefix=key.before)
    injector = CredentialInjector(
        overwrite=True, credential=extension("envoy.http.injected_credentials.generic", generic)
    )
    return _filter("envoy.filters.http.credential_injector", injector)


def _tls(tls: UpstreamTls, http2: object) -> UpstreamTlsContext:
    own = []
    if tls.cert is not None and tls.key is not None:
        own.append(
            TlsCertificate(
                certificate_chain=DataSource(filename=tls.cert), private_key=DataSource(filename=tls.key)
            )
        )
    validation = CertificateValidationContext(trusted_ca=DataSource(filename=tls.ca or SYSTEM_CA))
    if tls.server_name is not None:
        validation.match_typed_subject_alt_names = [
            SubjectAltNameMatcher(
                san_type=SubjectAltNameMatcherSanType.DNS, matcher=StringMatcher(exact=tls.server_name)
            )
        ]
    return UpstreamTlsContext(
        sni=tls.server_name or "",
        # Of each endpoint its own name, where the pool has none for all of them.
        auto_host_sni=tls.server_name is None,
        auto_sni_san_validation=tls.server_name is None,
        common_tls_context=CommonTlsContext(
            tls_params=TlsParameters(
                tls_minimum_protocol_version=_VERSIONS[tls.min_version],
                tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
            ),
            # 'auto' names its own.
            alpn_protocols=[] if http2 == "auto" else ["h2" if http2 else "http/1.1"],
            tls_certificates=own,
            validation_context=validation,
        ),
    )


def _filter(name: str, message: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=packed(message))
