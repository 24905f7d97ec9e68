"""Checks of Envoy: is it there, new enough, and are its filters ours and in order?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from extproc.addresses import port_of
from extproc.config.places import loopback
from extproc.core import contract
from extproc.doctor import dump
from extproc.doctor.evidence import NOT_ASKED, EnvoySeen, Evidence, Failed
from extproc.doctor.finding import Check, Said, error, note, warning
from extproc.supervise.envoy import VERSION_TRIED

#: override_host by metadata, and the Lua filter's calls, as this project uses them.
VERSION_MIN: Final = (1, 37)
#: What an answer's headers tell of tokens and queues (control/accesslog.py's list).
RESPONSE_HEADERS: Final = (contract.PROMPT_TOKENS_HEADER, contract.GENERATED_TOKENS_HEADER)
#: A record waits in Envoy for no more than this before it is sent.
FLUSH_S_MAX: Final = 1.0
RENDER: Final = "render it anew (steersman envoy-config -f FILE) and start Envoy with that"


def envoy_of(evidence: Evidence) -> EnvoySeen:
    """The Envoy that was seen; after `without_envoy` said nothing."""
    assert isinstance(evidence.envoy, EnvoySeen)
    return evidence.envoy


def without_envoy(evidence: Evidence) -> str:
    """Why Envoy cannot be looked at."""
    return f"Envoy's admin port: {evidence.envoy.why}" if isinstance(evidence.envoy, Failed) else ""


def without_manager(evidence: Evidence) -> str:
    """The same, or that it has nothing of ours."""
    if why := without_envoy(evidence):
        return why
    return "" if _managers(evidence) else "no listener with an ext_proc filter"


def _managers(evidence: Evidence) -> list[dump.Manager]:
    """The connection managers that ask a decision."""
    return [each for each in dump.managers(envoy_of(evidence).config_dump) if each.decision is not None]


def manager_of(evidence: Evidence) -> dump.Manager:
    """The first of them; after `without_manager` said nothing."""
    return _managers(evidence)[0]


def reachable(evidence: Evidence) -> Iterator[Said]:
    """The admin port answers, and Envoy is live."""
    if isinstance(evidence.envoy, Failed):
        where = evidence.config.gateway.envoy_admin
        yield error(
            f"Envoy's admin port does not answer at {where}: {evidence.envoy.why}",
            "start Envoy (steersman up, or envoy -c with steersman envoy-config's output), or give its admin "
            "address with --envoy-admin",
        )
        return
    state = evidence.envoy.server_info.get("state", "LIVE")
    if state != "LIVE":
        yield warning(
            f"Envoy is {state}, not LIVE", "wait until it has started; when it drains, start it anew"
        )


def version(evidence: Evidence) -> Iterator[Said]:
    """New enough for the filters that are used."""
    found = envoy_of(evidence).version
    text = ".".join(map(str, found))
    if found and found < VERSION_MIN:
        yield error(
            f"Envoy {text} is older than {'.'.join(map(str, VERSION_MIN))}: it lacks filters that are needed",
            "use Envoy 1.40: the one of the extra 'envoy', or the image envoyproxy/envoy:v1.40-latest",
        )
    elif found and found < VERSION_TRIED:
        yield note(f"Envoy {text} is older than what is tested (1.40)", "use Envoy 1.40 or newer")


def ext_proc(evidence: Evidence) -> Iterator[Said]:
    """The filter that asks for decisions, and how it asks."""
    found = _managers(evidence)
    if not found:
        yield error("no listener of this Envoy has an ext_proc filter: nothing asks for a decision", RENDER)
        return
    for manager in found:
        decision = manager.decision
        assert decision is not None
        yield from _asks_well(manager.listener, decision)


def _asks_well(listener: str, decision: dump.Json) -> Iterator[Said]:
    where = f"listener {listener}: ext_proc"
    mode = decision.get("processing_mode", {})
    body = mode.get("request_body_mode", "NONE")
    if mode.get("request_header_mode", "DEFAULT") == "SKIP" or body not in (
        "BUFFERED",
        "FULL_DUPLEX_STREAMED",
    ):
        yield error(
            f"{where} sends body {body}: the service decides on the whole request and never sees it",
            "set processing_mode: request_header_mode SEND, request_body_mode BUFFERED",
        )
    if body == "FULL_DUPLEX_STREAMED":
        return  # the endpoint picker's protocol: the answers' way is its own
    if (
        mode.get("response_header_mode", "DEFAULT") != "SKIP"
        or mode.get("response_body_mode", "NONE") != "NONE"
    ):
        yield error(
            f"{where} sends responses to the service too: a service that dies then cuts every running stream",
            "set processing_mode: response_header_mode SKIP, response_body_mode NONE, "
            "response_trailer_mode SKIP",
        )


def metadata(evidence: Evidence) -> Iterator[Said]:
    """The decision's metadata is taken, not dropped in silence."""
    for manager in _managers(evidence):
        assert manager.decision is not None
        spaces = dump.taken(manager.decision)
        missing = [
            each for each in (contract.LB_NAMESPACE, contract.DECISION_NAMESPACE) if each not in spaces
        ]
        if missing:
            yield error(
                f"listener {manager.listener}: ext_proc drops the decision's metadata "
                f"{' and '.join(missing)}",
                "add them under metadata_options.receiving_namespaces.untyped; without them Envoy ignores "
                "the "
                "chosen endpoint and no request is ever settled",
            )


def service_address(evidence: Evidence) -> Iterator[Said]:
    """ext_proc calls the service of this configuration."""
    envoy = envoy_of(evidence)
    clusters = dump.clusters(envoy.config_dump)
    wanted = evidence.config.service_addresses
    for manager in _managers(evidence):
        assert manager.decision is not None
        name = dump.cluster_of(manager.decision.get("grpc_service", {}))
        if name not in clusters:
            yield error(
                f"ext_proc calls cluster {name or '(none)'}, which this Envoy does not have",
                f"name a cluster with {', '.join(wanted)}; {RENDER}",
            )
            continue
        given = dump.addresses(clusters[name])
        if given and (strange := [each for each in given if each not in wanted]):
            yield error(
                f"ext_proc calls {', '.join(strange)}, but the service is at {', '.join(wanted)}",
                f"point cluster {name} to gateway.services (else service.listen): {RENDER}",
            )


def order(evidence: Evidence) -> Iterator[Said]:
    """Each filter where it must stand."""
    for manager in _managers(evidence):
        kinds = [next((kind for kind in dump.ORDER if dump.is_a(each, kind)), "") for each in manager.filters]
        found = [kind for kind in kinds if kind]
        wanted = sorted(found, key=dump.ORDER.index)
        if found != wanted:
            yield error(
                f"listener {manager.listener}: the filters stand as {_chain(found)}",
                f"order them as {_chain(wanted)}: bodies are bounded before the decision, and the first "
                "chunk "
                "is seen before token counts hold an answer back",
            )


def _chain(kinds: list[str]) -> str:
    return " → ".join(dump.short(kind) for kind in kinds)


def counting(evidence: Evidence) -> Iterator[Said]:
    """The filters that see token counts and the first chunk."""
    needed = {
        dump.JSON_COUNTS: "tokens of whole answers are not counted",
        dump.LUA: "first tokens are not told, and tokens of streams not counted",
        dump.BUFFER: "bodies are not bounded before the decision",
    }
    for manager in _managers(evidence):
        for kind, what in needed.items():
            if manager.first(kind) is None:
                yield warning(f"listener {manager.listener} has no {dump.short(kind)} filter: {what}", RENDER)


def access_log(evidence: Evidence) -> Iterator[Said]:
    """Ends of requests come back to the service."""
    for manager in _managers(evidence):
        logs = [
            each
            for each in manager.access_logs
            if each.get("common_config", {}).get("log_name") == contract.ACCESS_LOG_NAME
        ]
        where = f"listener {manager.listener}"
        if not logs:
            yield error(
                f"{where} has no gRPC access log '{contract.ACCESS_LOG_NAME}': no request is ever settled, "
                "reservations only expire and quotas never learn what was used",
                f"add envoy.access_loggers.http_grpc to the service: {RENDER}",
            )
            continue
        yield from _log_fields(where, logs, evidence)
        interval = manager.body.get("access_log_options", {}).get("access_log_flush_interval")
        ttl_s = evidence.config.limits.reservation_ttl_s
        if not interval or dump.seconds(interval) * 3 > ttl_s:
            yield error(
                f"{where} reports running requests {'never' if not interval else f'every {interval}'}: those "
                f"longer than limits.reservation_ttl_s ({ttl_s} s) expire while they run",
                "set access_log_options.access_log_flush_interval to gateway.heartbeat_s",
            )


def _log_fields(where: str, logs: list[dump.Json], evidence: Evidence) -> Iterator[Said]:
    services = evidence.config.service_addresses
    if len(logs) < len(services):
        yield error(
            f"{where} sends records to {len(logs)} of {len(services)} services: the others' books stay open",
            "give each service an access log of its own: " + RENDER,
        )
    for log in logs:
        common = log.get("common_config", {})
        headers = dump.names_in(log.get("additional_response_headers_to_log", []))
        if missing := [each for each in RESPONSE_HEADERS if each not in headers]:
            yield warning(
                f"{where}: the access log lacks the response headers {', '.join(missing)}, so whole "
                "answers of "
                "TGI are not counted",
                "list them under additional_response_headers_to_log",
            )
        waits = dump.seconds(common.get("buffer_flush_interval", "1s"))
        if common.get("buffer_size_bytes", 16384) > 4096 and waits > FLUSH_S_MAX:
            yield warning(
                f"{where}: records wait up to {waits:g} s in Envoy", "set common_config.buffer_size_bytes: 1"
            )
    sent = envoy_of(evidence).stats
    if dropped := sent.get("access_logs.grpc_access_log.logs_dropped", 0):
        yield warning(
            f"Envoy has dropped {dropped} records: those requests were settled by expiry alone",
            "see whether the service was away, or is too slow (steersman status)",
        )


def stripping(evidence: Evidence) -> Iterator[Said]:
    """Headers that only we may set are removed before anything looks."""
    for manager in _managers(evidence):
        names, prefixes = manager.removed_headers
        left = [
            each
            for each in contract.STRIPPED_HEADERS
            if each not in names and not each.startswith(prefixes or ("\0",))
        ]
        if left:
            shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
            yield error(
                f"listener {manager.listener} lets clients set {shown}: a client could choose its tenant "
                "or replica",
                "remove them in early_header_mutation_extensions: " + RENDER,
            )


def admin(evidence: Evidence) -> Iterator[Said]:
    """Where the running Envoy's admin port really listens."""
    where = dump.admin_address(envoy_of(evidence).config_dump)
    if where and not loopback(where):
        yield error(
            f"Envoy's admin port listens on {where}: whoever reaches it can stop Envoy and read its "
            "configuration",
            "bind it to 127.0.0.1 (gateway.envoy_admin) and start Envoy anew",
        )


def listening(evidence: Evidence) -> Iterator[Said]:
    """A listener where clients are told to connect."""
    where = evidence.config.gateway.listen
    found = dump.listens(envoy_of(evidence).config_dump)
    port = port_of(where)
    if found and not any(each.endswith(f":{port}") for each in found):
        yield warning(
            f"no listener has gateway.listen's port {port}; there are {', '.join(found)}",
            "start Envoy with this file's bootstrap, or correct gateway.listen",
        )


def _offline(evidence: Evidence) -> str:
    return "not asked (--offline)" if evidence.envoy is NOT_ASKED else ""


CHECKS: Final = (
    Check(id="envoy.reachable", about="Envoy's admin port answers", look=reachable, missing=_offline),
    Check(id="envoy.version", about="Envoy is new enough", look=version, missing=without_envoy),
    Check(
        id="envoy.admin-port",
        about="the running admin port is on loopback",
        look=admin,
        missing=without_envoy,
    ),
    Check(
        id="envoy.listener",
        about="a listener stands where clients connect",
        look=listening,
        missing=without_envoy,
    ),
    Check(
        id="envoy.ext-proc",
        about="ext_proc asks for decisions, with the body",
        look=ext_proc,
        missing=without_envoy,
    ),
    Check(
        id="envoy.metadata", about="the decision's metadata is taken", look=metadata, missing=without_manager
    ),
    Check(
        id="envoy.service", about="ext_proc calls this service", look=service_address, missing=without_manager
    ),
    Check(
        id="envoy.filter-order", about="the filters stand in their order", look=order, missing=without_manager
    ),
    Check(
        id="envoy.counting", about="tokens and first chunks are seen", look=counting, missing=without_manager
    ),
    Check(
        id="envoy.access-log", about="ends of requests come back", look=access_log, missing=without_manager
    ),
    Check(id="envoy.trust", about="clients cannot set our headers", look=stripping, missing=without_manager),
)
