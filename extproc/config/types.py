"""The configuration's own value types: names, addresses, hashes; each says what to write instead."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.config import JsonDict

from extproc import addresses, engines
from extproc.config import redis_url
from extproc.config.plugins import load_strategy, strategy_names
from extproc.core.catalogue import STRATEGY_NAMES
from extproc.meant import meant, one_of

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
#: Envoy refuses names with underscores.
HEADER_PATTERN = re.compile(r"x-[a-z0-9]([a-z0-9-]{0,59}[a-z0-9])?")
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
#: What stands in examples where a hash belongs.
HASH_PLACEHOLDER = "PASTE-THE-HASH-HERE"
#: What people type where a secret is asked for; whoever guesses keys begins with these.
WEAK_KEYS = (
    "", " ", "0", "1", "123", "1234", "12345", "123456", "12345678", "123456789", "abc", "abc123",
    "acme", "admin", "api-key", "api_key", "apikey", "bar", "changeit", "changeme", "default", "demo",
    "dummy", "empty", "EMPTY", "example", "foo", "foobar", "guest", "hello", "key", "letmein", "llama",
    "my-key", "mykey", "none", "password", "password1", "qwerty", "root", "sample", "secret", "sk-test",
    "sk-1234", "steersman", "test", "test123", "token", "user", "x",
)  # fmt: skip
#: Of what is common an `echo KEY | sha256sum` hashes the line's end as well.
_WEAK_HASHES = frozenset(
    hashlib.sha256(f"{word}{end}".encode()).hexdigest() for word in WEAK_KEYS for end in ("", "\n")
)


def _name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name; write 1 to 63 of a-z, 0-9, '.', '_' and '-', "
            "beginning and ending with a letter or a digit"
        )
    return value


def ip_port(value: str) -> str:
    """Canonical `ip:port`: Envoy's override_host compares strings, so one address has one spelling."""
    host, port = _host_and_port(value)
    try:
        return addresses.spelled(host, port)
    except ValueError:
        hint = "127.0.0.1" if host == "localhost" else "0.0.0.0"
        raise ValueError(
            f"{host!r} is a host name, and only addresses are listened on; write {hint}:{port}"
        ) from None


def _endpoint(value: str) -> str:
    host, port = _host_and_port(value.removeprefix("http://").partition("/")[0] if _names(value) else value)
    try:
        return addresses.spelled(host, port)
    except ValueError:
        if host == "localhost":
            # Two addresses on most machines, and one engine behind both.
            raise ValueError(
                f"{host!r} is two addresses, and each would count as a replica; write 127.0.0.1:{port}"
            ) from None
        if _names(value):
            raise ValueError(f"{value!r} is a URL; write {host}:{port}, without 'http' and path") from None
        name = host.lower().rstrip(".")
        if not addresses.is_host_name(name):
            raise ValueError(f"{host!r} is neither an IP address nor a host name; write ip:port") from None
        return addresses.joined(name, port)


def _names(url: str) -> bool:
    """Whether it is a plain HTTP URL with a port whose host is a name: then the name is what to speak of."""
    found = re.match(r"http://([^/:\s]+):\d+(/|$)", url)
    return found is not None and re.fullmatch(r"[0-9.]+", found[1]) is None


def _host_and_port(value: str) -> tuple[str, int]:
    """The two parts of an address; ValueError with what to write for anything else, URLs first."""
    scheme, mark, rest = value.partition("://")
    if mark:
        bare = rest.partition("/")[0]
        if scheme == "https":
            shown = bare if re.search(r":\d+$", bare) else f"{bare}:443"
            raise ValueError(
                f"{value!r} is a URL; write {shown}, and under the pool 'upstream: {{tls: {{}}}}'"
            )
        shown = bare if re.search(r":\d+$", bare) else f"{bare}:80"
        raise ValueError(f"{value!r} is a URL; write {shown or 'ip:port'}, without {scheme!r} and path")
    if "%" in (host := value.rpartition(":")[0]):
        raise ValueError(f"{host!r} has a zone id, which Envoy does not take; write the address without it")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        # '2001:db8::11' would else be port 11 of 2001:db8::.
        raise ValueError(f"{value!r} is an IPv6 address without brackets; write '[ADDRESS]:PORT', in quotes")
    try:
        return addresses.split(value)
    except addresses.NoPortError:
        what = "a path" if "/" in value else "no port"
        raise ValueError(f"{value!r} has {what}; write ip:port, such as 127.0.0.1:8080") from None


def _listen(value: str) -> str:
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path:
            raise ValueError("'unix:' has no path; write unix:/run/steersman/extproc.sock")
        # sun_path holds 108 bytes with its terminator; a longer one fails at bind with a riddle.
        if len(path.encode()) > 107:
            raise ValueError(f"the socket's path has {len(path.encode())} bytes; the system allows 107")
        return value
    return ip_port(value)


def _sha256(value: str) -> str:
    lowered = value.lower().removeprefix("sha256:")
    if HASH_PLACEHOLDER.lower() in lowered or "…" in lowered:
        raise ValueError(
            "still holds the example's placeholder; run 'steersman tenant key new', keep the key that it "
            "prints and write its sha256 here"
        )
    if lowered in _WEAK_HASHES:
        # Which one it is stays unsaid: messages end up in logs.
        raise ValueError(
            "is the hash of a well-known word, which anybody can guess; make a key with "
            "'steersman tenant key new'"
        )
    if not SHA256_PATTERN.fullmatch(lowered):
        raise ValueError(
            "not a SHA-256 in hex (64 digits); make a key and its hash with 'steersman tenant key new'"
        )
    return lowered


def _header(value: str) -> str:
    lowered = value.lower()
    if not HEADER_PATTERN.fullmatch(lowered):
        raise ValueError(
            f"{value!r} is not a header's name here; write 'x-' and a to z, 0 to 9 and '-', such as "
            "x-forwarded-tenant"
        )
    return lowered


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path; Envoy reads the file, from a folder of its own")
    return value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a network; write it like 10.0.0.0/24") from None


def _redis(value: str) -> str:
    # Not repeated in the message: a password may stand in it.
    if redis_url.several(value) is None and not re.match(r"(redis|rediss|unix)://.", value):
        raise ValueError("is not a Redis address; write redis://HOST:6379/0 (rediss:// with TLS)")
    return value


# The schema says of these what editors can complete or underline; the wording is the validators'.
Name = Annotated[
    str, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{NAME_PATTERN.pattern}$"})
]
IpPort = Annotated[str, AfterValidator(ip_port)]
EndpointAddress = Annotated[str, AfterValidator(_endpoint)]
Listen = Annotated[str, AfterValidator(_listen)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
HeaderName = Annotated[str, AfterValidator(_header)]
EnvoyFile = Annotated[str, AfterValidator(_absolute)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Network = Annotated[str, AfterValidator(_network)]
RedisUrl = Annotated[str, AfterValidator(_redis)]


def _strategy(value: str) -> str:
    if not load_strategy(value):
        known = (*STRATEGY_NAMES, *strategy_names())
        raise ValueError(f"{value!r} is not a strategy; there are {', '.join(known)}{meant(value, known)}")
    return value


def _with_strategies(schema: JsonDict) -> None:
    """The schema names what is installed here."""
    schema["enum"] = [*STRATEGY_NAMES, *strategy_names()]


#: A strategy's parameters, by name.
Parameters = dict[str, float | int | bool | str]
StrategyName = Annotated[str, AfterValidator(_strategy), Field(json_schema_extra=_with_strategies)]


def _engine(value: str) -> str:
    try:
        engines.named(value)
    except KeyError:
        raise ValueError(one_of(value, engines.names())) from None
    return value


def _engines_known(schema: dict[str, Any]) -> None:
    schema["enum"] = list(engines.names())


EngineName = Annotated[str, AfterValidator(_engine), Field(json_schema_extra=_engines_known)]


def _floor(value: object) -> object:
    named = isinstance(value, str) and 0 < len(value) <= 256
    ranked = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not named and not ranked:
        raise ValueError(f"{value!r} is no floor; write a model's name, or a rank from 1, the smallest")
    return value


#: A model of a family, or its rank in it.
Floor = Annotated[str | int, BeforeValidator(_floor)]
