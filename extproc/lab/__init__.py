"""What compares and searches over simulated replicas: the campaign, reports, workloads, replays of records.

Nothing of it runs in the service. Plots and the search of parameters need the extra `lab`.
"""
