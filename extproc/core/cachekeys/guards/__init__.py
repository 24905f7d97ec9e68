"""Guards of the semantic cache: whether two questions ask the same, by all that an embedding overlooks.

Pure. Owns the signature of a question. English is read; of other languages every word counts in its place.
"""

from __future__ import annotations

from extproc.core.cachekeys.guards.signature import GUARD_KINDS, GuardSignature, differs, signature

__all__ = ["GUARD_KINDS", "GuardSignature", "differs", "signature"]
