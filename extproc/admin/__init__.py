"""The admin port: an HTTP API, and the page that people look at.

Owns what is shown, to whom, and what may be ordered through it. Knows the core and its figures; of the
service as a whole it knows the callables that it was handed (`sources.Sources`). Nothing here is on the way
of a decision, and no answer, however big, holds the event loop for longer than a slice (`slices`).
"""
