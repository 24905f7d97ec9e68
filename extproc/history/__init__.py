"""Who changed the configuration, when and why: versions beside the file, edits that keep its comments.

Owns the file on disk between its readers: locking, atomic writes, watching. What a configuration means is
`config`'s.
"""
