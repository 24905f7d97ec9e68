"""Quotas of several services through Redis: books that spend leases, and what reconciles them with Redis's.

`books` decides and keeps the port, `lease` is the arithmetic of what may be spent without asking, `loans`
takes leases and gives them back, `questions` asks for what they do not cover, `journal` holds what Redis has
yet to hear, `reconcile` tells it, `session` owns the connections, `scripts` and `payload` the two scripts of
lua/ and what is said to them.

Redis's books of a tenant are five keys with the tenant as hash tag, so one slot of a cluster holds them. Time
there is the server's.
"""
