"""A gateway with something to do: simulated replicas, two tenants' traffic, and a table to watch.

Everything it shows of replicas is *simulated; timings from splitwise-sim / vidur*.
"""
