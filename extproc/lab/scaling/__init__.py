"""`make sim-scaling`: replicas of a pool over days and weeks, by our planner, others, and an oracle.

All of it is simulated. Needs the extra `lab` (numpy).
"""
