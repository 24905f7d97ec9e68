"""Replay of one's own traffic: the record of a service, played on simulated replicas under other choices.

Owns the reading of a record and what is rebuilt of it. The simulation is `extproc.sim`'s, the decisions are
the scheduler's own; every figure that comes out is simulated, but for those called measured.
"""
