"""Where endpoints come from besides the configuration: names in DNS, a watched file.

A source knows one pool and tells complete sets of members; what is known of a pool is the union over its
sources (merge.py). Each source has a pure core and a thin asyncio shell around it. Knows `config` and
`core`; never Envoy, never the fleet.
"""
