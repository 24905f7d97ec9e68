"""Tuning of strategies' parameters: a search over recorded traffic, and small steps while a service runs.

Owns what is varied and how a gain is proven. `search` plays replays and needs Optuna (the extra `lab`);
`online` is pure and needs nothing.
"""
