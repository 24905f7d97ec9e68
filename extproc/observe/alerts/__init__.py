"""Alerts: what is watched, when somebody is told, and how the message gets there.

`history` keeps cumulative figures by time, `watch` is the Observer that fills them, `rules` and `defaults`
say what is looked for, `engine` runs the states, `anomaly` learns tenants' patterns, `message` writes
notifications, `outbox` retries them, `post` sends one, `prometheus` exports the rules.
All but `post` are pure: time comes as `now_ns` (monotonic), chance as a `random.Random`.
"""
