"""What a rung's process is asked, and what it answers: both cross as JSON."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """What to run, and how often to time it. ``device`` is "cpu" or "cuda:N"."""

    rung: str
    network: str
    batch: int
    device: str
    tiny: bool
    repeats: int


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it; with ``failure`` the rest means nothing.

    ``ready_s`` is how long it took to quantize, compile and warm. ``cosine`` and ``sqnr_db`` are of the answer and that
    of fp32. ``peak_mib`` is the most of the GPU's memory that tensors had, once warm; None off a GPU.
    """

    median_ms: float = 0.0
    ready_s: float = 0.0
    cosine: float = 0.0
    sqnr_db: float | None = None
    peak_mib: float | None = None
    failure: str = ""
