"""The pure core: requests, the fleet, the ledger and the decision.

No I/O, no clock, no chance of its own: time comes as `now_ns` (monotonic nanoseconds), chance as a
seeded `random.Random`, the world as values. import-linter holds this (law: pure core).
"""
