"""Composition root: builds the service from a configuration, starts it, reloads it, drains it."""
