"""The keys that this site shares with others, from their files.

Owns the reading alone: by the service at its start, at a reload and when a file changes, and by `doctor`; not
by `steersman check`, which may run where the files are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config
from extproc.core.remote.signing import KeyKind, SiteKey, by_id, read_keys, signing_key
from extproc.extras import missing, needed

#: What is read of a file; more is no file of keys.
FILE_BYTES_MAX = 16 * 1024


@dataclass(frozen=True, slots=True)
class SiteKeys:
    """The keys of all other sites: by their ids, with whose they are; and by site, that which signs."""

    known: Mapping[str, tuple[str, SiteKey]] = field(default_factory=dict, repr=False)
    signing: Mapping[str, SiteKey] = field(default_factory=dict, repr=False)


def site_keys(config: Config) -> SiteKeys:
    """Read them. Raises ConfigError."""
    if config.site is None:
        return SiteKeys()
    found: dict[str, tuple[SiteKey, ...]] = {}
    for i, peer in enumerate(config.site.peers):
        where = f"site.peers[{i}].keys_file"
        try:
            with Path(peer.keys_file).open("rb") as file:
                text = file.read(FILE_BYTES_MAX + 1)
            if len(text) > FILE_BYTES_MAX:
                raise ValueError(f"has more than {FILE_BYTES_MAX} bytes; it is no file of keys")
            found[peer.name] = read_keys(text.decode("utf-8", "replace"))
            if any(key.kind is not KeyKind.SHARED for key in found[peer.name]) and missing("encryption"):
                raise ValueError(needed("encryption", by="an Ed25519 key", instead="use shared secrets"))
        except OSError as error:
            message = f"cannot be read: {error.strerror}; write 'ID SECRET' there, as at site {peer.name!r}"
            raise ConfigError([Problem(peer.keys_file, None, where, message)]) from error
        except ValueError as error:
            raise ConfigError([Problem(peer.keys_file, None, where, str(error))]) from error
    try:
        return SiteKeys(by_id(found), {site: signing_key(keys) for site, keys in found.items()})
    except ValueError as error:
        raise ConfigError([Problem("", None, "site.peers", str(error))]) from error


def files(config: Config) -> list[Path]:
    """What is read for them."""
    return [] if config.site is None else [Path(peer.keys_file) for peer in config.site.peers]
