"""What KV events say of an endpoint's prefix cache, taken into its pool's index.

Owns what follows from it: digests of token blocks put in and taken out, the true size and filling. All of it
moves the one endpoint that its agent speaks for.

A digest that no endpoint of the pool holds is left alone: it is of a prompt that never came through here, or
of a text prompt, which the index knows by its bytes. So nothing that is said makes the index larger than our
own requests do.
"""

from __future__ import annotations

from extproc.core.endpoint import Endpoint
from extproc.core.prefix import BLOCK_TOKENS, PrefixIndex
from extproc.core.reports import ReplicaReport

#: KV tokens that an endpoint is taken to hold where nobody says.
KV_TOKENS_ASSUMED = 200_000


def cache_tokens(endpoint: Endpoint) -> int:
    """Tokens that an endpoint's prefix cache is taken to hold."""
    return endpoint.cache_tokens or endpoint.kv_tokens or KV_TOKENS_ASSUMED


def resized(index: PrefixIndex, endpoint: Endpoint, capacity: float, block_tokens: float) -> None:
    """An endpoint's prefix cache is taken to hold `capacity` tokens, within what its KV memory can hold."""
    most = endpoint.kv_tokens or KV_TOKENS_ASSUMED
    endpoint.cache_tokens = max(1, min(most, int(capacity)))
    index.shrink(endpoint.address, capacity_blocks=int(endpoint.cache_tokens / block_tokens))


def heard(index: PrefixIndex, endpoint: Endpoint, before: ReplicaReport | None, now: ReplicaReport) -> None:
    """Take what a report says of KV events; one without them leaves usage and guesses to speak."""
    cache, kv = endpoint.cache, now.kv
    cache.events = kv is not None and kv.complete
    if kv is None:
        return
    address, was = endpoint.address, before.kv if before is not None else None
    taken = index.remove(address, kv.removed)
    known = [digest for digest in kv.stored if index.known(digest) and not index.holds(address, digest)]
    if known:
        capacity = max(1, int(cache_tokens(endpoint) / BLOCK_TOKENS))
        index.insert(address, known, capacity_blocks=capacity)
    cache.corrections["events_removed"] += taken
    cache.corrections["events_stored"] += len(known)
    if not kv.complete or was is None or not was.complete or before is None or before.boot_id != now.boot_id:
        return
    if kv.removed_blocks > was.removed_blocks:
        # It takes blocks out where it has no room: what it holds now is what it can hold.
        size = kv.cached_tokens
        cache.corrections["events_size"] += 1
    else:
        size = max(cache_tokens(endpoint), kv.cached_tokens)
    resized(index, endpoint, float(size), BLOCK_TOKENS)
