"""Answers in Redis, for several services: the scripts, the session, and the store over both.

Imports the extra `redis`; only who keeps answers there imports it.
"""
