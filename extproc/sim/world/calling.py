"""A world in which adapters are loaded by calls, as service/adapters.py makes them.

Owns when calls begin and end. What to call is the core's (adapter_calls.py). An engine makes no step while it
loads, unless that is beside its steps, and nothing fails.
"""

from __future__ import annotations

from functools import partial

from extproc.core.adapter_calls import (
    TURN_NS,
    AdapterCall,
    adapter_calls,
    first_waiting,
    wanted,
)
from extproc.core.adapters import TOGETHER_MAX, LoadedAdapters
from extproc.sim.served import Served
from extproc.sim.world.world import World


class CallingWorld(World):
    """One world; its pool's adapters are `by_call`. `stops`: a load stops its replica's steps."""

    stops = True

    def run(self) -> list[Served]:
        """Play everything."""
        #: The adapter that each replica is loading, by address.
        self._calling: dict[str, str] = {}
        self.happens(0, self._turn)
        return super().run()

    def _turn(self) -> None:
        pool = self.scheduler.fleet.pools[self._pool]
        assert pool.adapters is not None, pool.name
        waiting = [held.payload[0] for held in self.scheduler.dispatcher.waiting.values()]
        first = first_waiting(waiting, {pool.name: pool.adapters.names})[pool.name]
        calls = adapter_calls(
            pool.endpoints,
            wanted(first, now_ns=self.now_ns),
            busy=self._calling,
            coming=self._calling.values(),
            rests=lambda _address, _name: False,
            now_ns=self.now_ns,
        )
        for call in calls[: max(0, TOGETHER_MAX - len(self._calling))]:
            self._begin(call, int(pool.adapters.load_ms * 1e6))
        self.happens(self.now_ns + TURN_NS, self._turn)

    def _begin(self, call: AdapterCall, load_ns: int) -> None:
        if call.unload:
            self._adapters(call).goes(call.unload)
        self._calling[call.address] = call.load
        self._hang(call.address, hang=True)
        self.happens(self.now_ns + load_ns, partial(self._done, call))

    def _done(self, call: AdapterCall) -> None:
        del self._calling[call.address]
        self._hang(call.address, hang=False)
        self._adapters(call).came(call.load, now_ns=self.now_ns)
        endpoint = self.scheduler.fleet.endpoint(self._pool, call.address)
        self.scheduler.dispatcher.pump(self._pool, now_ns=self.now_ns, at=endpoint)

    def _hang(self, address: str, *, hang: bool) -> None:
        if self.stops:
            self.replicas[address].set_fault(now_ns=self.now_ns, hang=hang)
            self._changed(address)

    def _adapters(self, call: AdapterCall) -> LoadedAdapters:
        endpoint = self.scheduler.fleet.endpoint(self._pool, call.address)
        assert endpoint is not None, call
        assert endpoint.adapters is not None, call
        return endpoint.adapters
