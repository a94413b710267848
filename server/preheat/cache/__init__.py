"""The compile cache: what backends compiled, kept on the disk for the next start, and given back only if intact.

Knows nothing of models or backends: a key goes in, a folder comes out.
"""

from preheat.cache.compile_cache import CompileCache
from preheat.cache.entry import Entry
from preheat.cache.inventory import Integrity, StoredEntry, inventory, prune, remove, verify
from preheat.cache.keys import CacheKey, make_key
from preheat.cache.location import AUTOMATIC, SWITCHED_OFF, CacheUnusable, locate, open_cache

__all__ = [
    "AUTOMATIC",
    "SWITCHED_OFF",
    "CacheKey",
    "CacheUnusable",
    "CompileCache",
    "Entry",
    "Integrity",
    "StoredEntry",
    "inventory",
    "locate",
    "make_key",
    "open_cache",
    "prune",
    "remove",
    "verify",
]
