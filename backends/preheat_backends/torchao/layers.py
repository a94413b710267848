"""Which layers of a network are quantized: those that patterns of their names choose."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from preheat_backends.wording import list_names

EVERYTHING = ("*",)


class CannotQuantize(Exception):
    """No layer is left to quantize, a pattern names none, or one cannot be served.

    The text says which, and continues "the module of model.py".
    """


def choose(names: Sequence[str], *, only: Sequence[str], skip: Sequence[str], kind: str) -> Collection[str]:
    """Those of ``names`` that a pattern of ``only`` fits, and none of ``skip``.

    ``kind`` says what they are names of. Raises CannotQuantize if that leaves none, or a pattern fits none.
    """
    if not names:
        raise CannotQuantize(f"has no {kind}, the only kind of layer that is quantized")
    for pattern in (*only, *skip):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise CannotQuantize(f"has no {kind} that {pattern!r} fits; it has {list_names(names)}")
    fit = {name for name in names if any(fnmatchcase(name, pattern) for pattern in only)}
    chosen = {name for name in fit if not any(fnmatchcase(name, pattern) for pattern in skip)}
    if not chosen:
        raise CannotQuantize(f"is left no {kind} to quantize; it has {list_names(names)}")
    return chosen
