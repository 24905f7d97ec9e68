"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Cores are shared, with other tests among others: how long an example takes says nothing of it.
settings.register_profile("steersman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steersman")
