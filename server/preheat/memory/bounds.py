"""What cannot be a region, or a place in one."""

from preheat.errors import InvalidRequest

# More address space than a region can need to be real.
MOST_BYTES = 2**46


def check_place(region: str, has: int, offset: int, size: int) -> None:
    """Raise InvalidRequest unless ``size`` bytes from ``offset`` on are in ``region``, which ``has`` bytes."""
    if not (offset >= 0 and size >= 0 and offset + size <= has):
        raise InvalidRequest(f"shared memory region '{region}' has {has} bytes; there are no {size} from {offset} on")
