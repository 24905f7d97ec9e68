"""The response cache: answers that need no GPU. Where they are kept, and how they are filled.

What may be cached, and under which key, is core/cachekeys'.
"""
