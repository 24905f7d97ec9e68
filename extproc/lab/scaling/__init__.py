"""`make sim-scaling`: how many replicas a pool has over days and weeks, by our planner, by others, by an oracle.

All of it is simulated. Needs the extra `lab` (numpy).
"""
