"""Envoy's configuration, built from a `Config` with envoy-data-plane's messages.

Owns everything that Envoy is told: resources (clusters, endpoints), listener, routes, filters, the
bootstrap. Knows `config` and the names of `core.contract`; never the request path. Importing any
module in here costs about 1.5 s (envoy-data-plane), so callers do it late.
"""
