"""How a Redis is named in one text: one server, Sentinel's master, or a cluster.

Owns the grammar of `sharing.redis`, and the one set of options that all clients of it are made with; the
clients are state/redis_client.py's and observe/analytics/redis_store.py's.

    redis://[USER:PASSWORD@]HOST:PORT/DB            rediss:// with TLS; unix://PATH
    redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB    the master that these sentinels call NAME
    redis+cluster://HOST:PORT,HOST:PORT             a cluster that these nodes know

User and password are the servers'; `?sentinel_username=…&sentinel_password=…` are the sentinels'. With
rediss+ there is TLS to both. Options in the query (`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, …) are
redis-py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

SENTINEL_PORT, PORT = 26379, 6379
#: To connect.
CONNECT_TIMEOUT_S = 1.0
#: Hosts named in one address.
HOSTS_MAX = 64

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
OPTIONS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_ciphers"), str),
    **dict.fromkeys(("sentinel_username", "sentinel_password"), str),
    **dict.fromkeys(("socket_timeout", "socket_connect_timeout"), float),
    "ssl_check_hostname": lambda text: TRUTH[text.lower()],
}


@dataclass(frozen=True, slots=True)
class Several:
    """A Redis of several servers; `master` is Sentinel's name for it, empty for a cluster."""

    nodes: tuple[tuple[str, int], ...]
    master: str
    db: int
    #: What connections to the servers, and to the sentinels, are made with; names and values are redis-py's.
    servers: dict[str, Any] = field(repr=False)
    sentinels: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a URL's clients are made, in redis-py's words, whichever of its two kinds: asyncio's or not.

    `where` is None for one server. RESP2, and no name: every server and proxy speaks it, a user with few
    rights may not set one. Options in the URL override these.
    """

    where: Several | None
    servers: dict[str, Any] = field(repr=False)
    sentinels: dict[str, Any] = field(repr=False)


def clients(url: str, *, operation_timeout_s: float) -> ClientOptions:
    """What to make a client of; ValueError as `several`."""
    common: dict[str, Any] = {
        "protocol": 2,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": operation_timeout_s,
        "decode_responses": False,
    }
    where = several(url)
    if where is None:
        return ClientOptions(None, common, {})
    return ClientOptions(where, {**common, **where.servers}, {**common, **where.sentinels})


def several(url: str) -> Several | None:
    """What a redis+sentinel or redis+cluster address says; None for another, ValueError for a bad one."""
    scheme, _, rest = url.partition("://")
    secure, _, kind = scheme.partition("+")
    if secure not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
        return None
    parts = urlsplit(f"redis://{rest}")
    user_info, _, hosts = parts.netloc.rpartition("@")
    username, _, password = user_info.partition(":")
    default = SENTINEL_PORT if kind == "sentinel" else PORT
    nodes = tuple(_node(host, default) for host in hosts.split(",") if host)
    if not 0 < len(nodes) <= HOSTS_MAX:
        raise ValueError(f"names no host: write redis+{kind}://HOST:{default},HOST:{default}")
    path = [unquote(part) for part in parts.path.split("/") if part]
    master = path.pop(0) if kind == "sentinel" and path else ""
    if kind == "sentinel" and not master:
        raise ValueError("names no master: write redis+sentinel://HOST:26379,HOST:26379/NAME/0")
    if kind == "cluster" and path and path != ["0"]:
        raise ValueError("names a database: a Redis cluster has only 0")
    if len(path) > 1 or (path and not path[0].isdecimal()):
        raise ValueError("names a database that is no number")
    options = _options(parts.query)
    identity = {
        name.removeprefix("sentinel_"): options.pop(name) for name in list(options) if "sentinel_" in name
    }
    shared: dict[str, Any] = {**options, "ssl": True} if secure == "rediss" else options
    users = {name: unquote(text) for name, text in (("username", username), ("password", password)) if text}
    return Several(
        nodes=nodes,
        master=master,
        db=int(path[0]) if path else 0,
        servers={**shared, **users},
        sentinels={**shared, **identity},
    )


def _options(query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in parse_qsl(query):
        if name not in OPTIONS:
            raise ValueError(f"has an option that is none: {name}; there are {', '.join(OPTIONS)}")
        try:
            found[name] = OPTIONS[name](text)
        except (ValueError, KeyError):
            raise ValueError(f"has a value for {name} that is none") from None
    return found


def _node(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not parts.hostname or port == 0:
        raise ValueError(f"names a host that is none: {text}")
    return parts.hostname, port or default
