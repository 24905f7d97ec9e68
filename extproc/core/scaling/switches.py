"""What it costs that a node changes models: the time, and the memory that is missing afterwards.

Owns the measuring of switches (the same cards bore a ready replica of one model, and later of another), and
the choice of a replica that another pool gives up in place of a new one. Pure. NVML tells how much of a card
other processes hold, engines how much KV memory they could allocate; neither tells the largest free block,
so what an engine got, against others of its kind, stands for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import asdict

from extproc.core.scaling.load_times import SECONDS_MAX, LoadKey, LoadTimes
from extproc.core.scaling.values import LoadTime, ModelSwitch, SwitchOffer

NS: Final = 1_000_000_000
#: Sets of cards that are followed, and models of one.
CARDS_MAX: Final = 10_000
MODELS_MAX: Final = 8
#: Two models that are ready on the same cards within so long share them: that was no switch.
SHARED_NS: Final = 60 * NS
#: Missing KV memory below this share is the engine's own rounding.
MEMORY_LOST_MIN: Final = 0.02


class CardSet(NamedTuple):
    """A node's cards that one replica runs on; its address where nobody says which."""

    node: str
    ids: tuple[str, ...]


class _Began(NamedTuple):
    """A model is ready where another one was, since then; it counts once the other stays away."""

    model: str
    pool: str
    hardware: str
    since_ns: int
    seconds: float


class ModelSwitches:
    """All switches that were seen, by the pool that they were to and its hardware."""

    def __init__(self) -> None:
        self.times = LoadTimes()
        #: When each model was ready last, by cards.
        self._ready: dict[CardSet, dict[str, int]] = {}
        self._began: dict[CardSet, _Began] = {}

    def saw(self, cards: CardSet, *, model: str, pool: str, hardware: str, now_ns: int) -> None:
        """A replica of a model is ready on these cards; called as often as is looked."""
        known = self._ready.get(cards)
        if known is None:
            if len(self._ready) >= CARDS_MAX:
                # The one that was looked at first is most likely gone.
                oldest = next(iter(self._ready))
                del self._ready[oldest]
                self._began.pop(oldest, None)
            known = self._ready[cards] = {}
        others = [at for name, at in known.items() if name != model]
        began = self._began.get(cards)
        if began is not None and began.model != model:
            # Whoever was there is still there: they share the cards.
            del self._began[cards]
        elif began is not None and now_ns - began.since_ns >= SHARED_NS:
            del self._began[cards]
            self.times.loaded(began.pool, began.hardware, began.seconds)
            known.clear()
        elif began is None and others and (model not in known or known[model] < max(others)):
            seconds = (now_ns - max(others)) / NS
            if 0.0 < seconds <= SECONDS_MAX:
                self._began[cards] = _Began(model, pool, hardware, now_ns, seconds)
        if len(known) < MODELS_MAX or model in known:
            known[model] = now_ns

    def of(self, pool: str, hardware: str) -> LoadTime:
        """How long a switch to a pool's model takes on such hardware; `measured` 0 where none was seen."""
        return self.times.of_key(LoadKey(pool, hardware, None))


def memory_lost(kv_tokens: int, best_tokens: int) -> float:
    """Which share (0..1) of its KV memory a replica is missing, against the best of its kind."""
    if kv_tokens <= 0 or best_tokens <= kv_tokens:
        return 0.0
    lost = 1.0 - kv_tokens / best_tokens
    return lost if lost >= MEMORY_LOST_MIN else 0.0


def chosen_switch(
    offers: Sequence[SwitchOffer], load: LoadTime, *, takes_bytes: int = 0
) -> ModelSwitch | None:
    """Which replica that another pool gives up should change to this pool's model, rather than that a new
    one is begun: where that was measured, is sooner, and its cards have room.

    `takes_bytes`: what a replica of this pool holds, 0 where nobody says. Of several the soonest, then the
    one that lacks least memory. None where a new one is as good.
    """
    roomy = [
        each for each in offers if not takes_bytes or not each.room_bytes or each.room_bytes >= takes_bytes
    ]
    fits = [each for each in roomy if each.switch.measured and each.switch.p50_s < load.p50_s]
    if not fits:
        return None
    best = min(fits, key=lambda each: (each.switch.p50_s, each.memory_lost, each.address))
    return ModelSwitch(**asdict(best), load_p50_s=load.p50_s, passed_over=len(offers) - len(roomy))
