"""Making a library one that can be unloaded: what g++ writes by itself stays mapped until the process ends.

It marks what C++ wants once in a process, such as the statics of inline functions, as unique (STB_GNU_UNIQUE), and the
loader never lets go of a library that has such a symbol. A package has nothing to share with another one.
"""

import struct
from pathlib import Path

import numpy as np

# Of elf(5): the header of a 64-bit file in little-endian order, and where in it and in a section's header things are.
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_SECTIONS = struct.Struct("<40xQ10xHH2x")
_SECTION = struct.Struct("<4xI16xQQ16xQ")
_DYNAMIC_SYMBOLS = 11
_SYMBOL_BYTES, _INFO = 24, 4
_GLOBAL, _UNIQUE = 1, 10


def make_unloadable(library: Path) -> int:
    """Make unique symbols of ``library`` ordinary ones, in the file; how many there were.

    What is no such file is left as it is: the loader has its own words for that.
    """
    content = np.memmap(library, np.uint8, "r+") if library.stat().st_size else np.empty(0, np.uint8)
    changed = 0
    try:
        for start, size in _symbol_tables(content):
            symbols = content[start : start + size - size % _SYMBOL_BYTES].reshape(-1, _SYMBOL_BYTES)
            unique = symbols[:, _INFO] >> 4 == _UNIQUE
            symbols[unique, _INFO] = symbols[unique, _INFO] & 15 | _GLOBAL << 4
            changed += int(unique.sum())
    except (struct.error, ValueError):
        return changed
    return changed


def _symbol_tables(content: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> list[tuple[int, int]]:
    """Where the tables of dynamic symbols begin, and their sizes."""
    if content[: len(_ELF64_LITTLE)].tobytes() != _ELF64_LITTLE:
        return []
    offset, each, count = _SECTIONS.unpack(content[: _SECTIONS.size].tobytes())
    tables = []
    for number in range(count):
        begins = offset + number * each
        kind, start, size, entry = _SECTION.unpack(content[begins : begins + _SECTION.size].tobytes())
        if kind == _DYNAMIC_SYMBOLS and entry == _SYMBOL_BYTES and start + size <= len(content):
            tables.append((start, size))
    return tables
