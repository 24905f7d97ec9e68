"""One replica's KV memory: what its batch reserves, and the prefix cache in what is left.

Owns the capacity. Knows no steps, no queue and no time. After TGI v3: an entry reserves
`input + min(max_new, slice) − 1 − cached` tokens when admitted and nothing later; prompts enter the
cache only when their request gives its memory back, generated tokens do not.
"""

from __future__ import annotations

from extproc.sim.prefix_cache import PrefixCache
from extproc.sim.slots import ReplicaLimits, Slot


class Memory:
    """Reservations and cached prefixes; together never above the capacity."""

    __slots__ = ("_caching", "_capacity", "_slice_tokens", "cache", "cached_most", "frees", "reserved_tokens")

    def __init__(self, limits: ReplicaLimits) -> None:
        self._capacity = limits.kv_capacity_tokens
        self._caching = limits.prefix_caching and limits.cache_share > 0.0
        #: Tokens that the prefix cache keeps at most, what is pinned aside.
        self.cached_most = int(limits.kv_capacity_tokens * limits.cache_share)
        self._slice_tokens = limits.slice_tokens
        self.cache = PrefixCache(block_tokens=limits.block_tokens, eviction=limits.eviction)
        self.reserved_tokens = 0
        self.frees = 0  # how often memory was given back: what did not fit does not until this grows

    @property
    def used_tokens(self) -> int:
        """Reserved by the batch or held by the prefix cache."""
        return self.reserved_tokens + self.cache.used_tokens

    def allocate(self, sequence: Slot) -> bool:
        """Reserve one slice, pinning its cached prefix and evicting others where needed."""
        request = sequence.request
        cache = self.cache
        lease = cache.acquire(sequence.blocks) if self._caching and sequence.blocks else None
        cached = 0 if lease is None else lease.blocks * cache.block_tokens
        this_slice = request.max_new_tokens - sequence.base
        if request.sliced and this_slice > self._slice_tokens:
            this_slice = self._slice_tokens
        need = sequence.input_tokens - cached + this_slice - 1
        lacking = need - (self._capacity - self.used_tokens)
        if lacking > 0:
            blocks = -(-lacking // cache.block_tokens)
            if cache.evict(blocks) < blocks:
                if lease is not None:
                    cache.release(lease)
                return False
        self.reserved_tokens += need
        sequence.lease = lease
        sequence.reserved = need
        sequence.slice = min(request.output_tokens - sequence.base, this_slice)
        # The forward pass needs at least one token, even where the whole prompt is cached.
        sequence.left = max(sequence.input_tokens - cached, 1)
        if sequence.cached < 0:
            sequence.cached = sequence.input_tokens - sequence.left
        return True

    def free(self, sequence: Slot) -> None:
        """Give a reservation back; the prompt's blocks stay behind in the cache."""
        self.reserved_tokens -= sequence.reserved
        sequence.reserved = 0
        self.frees += 1
        if sequence.lease is not None:
            self.cache.insert(sequence.blocks)
            self.cache.release(sequence.lease)
            sequence.lease = None
            above = self.cache.used_tokens - self.cached_most
            if above > 0:
                self.cache.evict(-(-above // self.cache.block_tokens))
