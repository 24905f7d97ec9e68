"""Capacity planned on one's own traffic: what another fleet would have done with a record, and its cost.

Owns the changes of a fleet, their figures and the search for the cheapest. The simulation is `lab.replay`'s:
every figure is simulated, on replicas with the timings that the service learned; those of a card that the
record does not have are scaled by the data sheets.
"""
