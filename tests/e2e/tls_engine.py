"""A model server behind TLS as operators have it: certificates of every kind, a key, HTTP/2 or not.

The engine is a ShapedEngine; what speaks TLS and HTTP/2 before it is a real Envoy, as an ingress would. It
asks for the key, and says which names and versions it was asked by.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gateway import envoy_binary, free_ports, listens, wait_for
from identity import Authority, openssl
from processes import Child, stop_all

EXTENSIONS = "type.googleapis.com/envoy.extensions"
MANAGER = f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"


def expired(authority: Authority, name: str, sans: str) -> tuple[Path, Path]:
    """A certificate that was good until yesterday, and its key."""
    key, request, signed = (
        authority.folder / f"expired-{name}{suffix}" for suffix in (".key", ".csr", ".crt")
    )
    extensions = authority.folder / f"expired-{name}.ext"
    extensions.write_text(f"subjectAltName={sans}\n")
    openssl(
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(request),
        "-subj",
        f"/CN={name}",
    )
    database, serial = authority.folder / "index.txt", authority.folder / "serial.txt"
    database.write_text("")
    serial.write_text("77\n")
    settings = authority.folder / "ca.cnf"
    settings.write_text(
        f"[ca]\ndefault_ca=c\n[c]\ndatabase={database}\nserial={serial}\nnew_certs_dir={authority.folder}\n"
        f"certificate={authority.certificate}\nprivate_key={authority.key}\ndefault_md=sha256\npolicy=p\n"
        "[p]\ncommonName=supplied\n"
    )
    ends = datetime.now(UTC) - timedelta(days=1)
    dates = ("-startdate", f"{ends - timedelta(days=1):%Y%m%d%H%M%SZ}", "-enddate", f"{ends:%Y%m%d%H%M%SZ}")
    openssl(
        "ca", "-batch", "-config", str(settings), "-in", str(request), "-out", str(signed), "-notext",
        "-extfile", str(extensions), *dates,
    )  # fmt: skip
    return signed, key


class TlsFronts:
    """Context manager: one Envoy with a listener for each front, all before the same engine.

    A front is {certificate, key, client_ca, alpn, tls, codec}. It answers 401 where the request does not have
    `keys[name]`, and says in headers by which name (x-sni), host (x-host) and version (x-version) it was
    asked.
    """

    def __init__(
        self, folder: Path, engine: str, fronts: Mapping[str, Mapping[str, Any]], keys: Mapping[str, str]
    ) -> None:
        names = list(fronts)
        admin, *ports = free_ports(len(names) + 1)
        self.port = dict(zip(names, ports, strict=True))
        self._keys = dict(keys)
        host, port = engine.rsplit(":", 1)
        target = {"address": {"socket_address": {"address": host, "port_value": int(port)}}}
        config = {
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
            "static_resources": {
                "listeners": [
                    _listener(name, self.port[name], front, keys.get(name)) for name, front in fronts.items()
                ],
                "clusters": [
                    {
                        "name": "engine",
                        "type": "STATIC",
                        "load_assignment": {
                            "cluster_name": "engine",
                            "endpoints": [{"lb_endpoints": [{"endpoint": target}]}],
                        },
                    }
                ],
            },
        }
        file = folder / "fronts.json"
        file.write_text(json.dumps(config))
        command = [
            envoy_binary(),
            "-c",
            str(file),
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "-l",
            "warning",
        ]
        self.envoy = Child("fronts", command, folder)

    def __enter__(self) -> TlsFronts:
        self.envoy.start()
        try:
            for port in self.port.values():
                wait_for("a front", lambda port=port: listens(port))
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *_: object) -> None:
        stop_all((self.envoy,))

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.port[name]}"


def _listener(name: str, port: int, front: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    said = {
        "x-sni": "%REQUESTED_SERVER_NAME%",
        "x-host": "%REQ(:AUTHORITY)%",
        "x-version": "%PROTOCOL%",
        "x-path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "x-org-seen": "%REQ(X-ORG)%",
        "x-key-seen": "%REQ(X-API-KEY)%",
        "x-prefix-seen": "%REQ(X-STEERSMAN-PATH-PREFIX)%",
    }
    head = [{"header": {"key": k, "value": v}} for k, v in said.items()]
    strip = {"prefix_rewrite": "/"} if front.get("prefix") else {}
    matched = {"prefix": f"{front['prefix']}/"} if front.get("prefix") else {"prefix": "/"}
    good: dict[str, Any] = {"match": matched, "route": {"cluster": "engine", "timeout": "0s", **strip}}
    if key is not None:
        header, _, value = key.partition(": ")
        good["match"] = {**matched, "headers": [{"name": header, "string_match": {"exact": value}}]}
    routes = [
        {"match": {"path": f"{front.get('prefix', '')}/health"}, "direct_response": {"status": 200}},
        good,
        {
            "match": {"prefix": "/"},
            "direct_response": {"status": 401, "body": {"inline_string": "who are you?"}},
        },
    ]
    manager = {
        "@type": MANAGER,
        "stat_prefix": name,
        "codec_type": front.get("codec", "AUTO"),
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": routes, "response_headers_to_add": head}
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    chain: dict[str, Any] = {
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
        ]
    }
    if front.get("certificate"):
        context: dict[str, Any] = {
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(front["certificate"])},
                    "private_key": {"filename": str(front["key"])},
                }
            ],
            "alpn_protocols": list(front.get("alpn", ("h2", "http/1.1"))),
        }
        tls: dict[str, Any] = {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": context,
        }
        if front.get("versions"):
            low, high = front["versions"]
            context["tls_params"] = {
                "tls_minimum_protocol_version": low,
                "tls_maximum_protocol_version": high,
            }
        if front.get("client_ca"):
            context["validation_context"] = {"trusted_ca": {"filename": str(front["client_ca"])}}
            tls["require_client_certificate"] = True
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "listener_filters": [
            {
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": {"@type": f"{EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector"},
            }
        ]
        if front.get("certificate")
        else [],
        "filter_chains": [chain],
    }
