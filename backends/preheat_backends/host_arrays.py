"""Arrays on the host, as libraries want them that know nothing of read-only memory."""

from types import SimpleNamespace

import numpy as np

from preheat.tensors import Array


def marked_writable(array: Array) -> Array:
    """The same memory, marked writable, for a library that does not write but refuses, or warns of, what it could not.

    It does not keep ``array`` alive.
    """
    if array.flags.writeable:
        return array
    interface = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    return np.asarray(SimpleNamespace(__array_interface__=interface))
