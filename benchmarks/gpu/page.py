"""What was found, as sections of a page, beside what others published."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.jobs import Found
from benchmarks.gpu.published import BATCH, FIGURES, HARDWARE, SOURCE, Figure
from benchmarks.gpu.rungs import BY_NAME, Rung
from benchmarks.report import Row, Section

_TITLES = {"block": "One block", "encoder": "The image encoder"}
_ABOUT = {
    "block": "A block of Segment Anything's ViT-H with windows of 14: 16 images of 64 by 64 patches, 1280 channels, 16 "
    "heads, relative positions by row and column.",
    "encoder": "The whole image encoder, ViT-H: 32 blocks, 4 of them without windows, on images of 1024 by 1024.",
}
_COLUMNS = (
    "`median ms`: of calls on data that is on the device, timed by CUDA events. `times fp32`: how much faster. "
    "`peak MiB`: the most that tensors had of the GPU's memory once warm. `cosine`, `SQNR dB`: of the answer and that "
    "of fp32. `ready s`: quantizing, compiling and the first calls. Weights are random, the same for each rung."
)
_TINY = "**Small networks, to try the benchmark itself, which say nothing of speed.** Off a GPU, modes are left out."
_NOT_OURS = f"published ms ({HARDWARE})"


@dataclass(frozen=True, slots=True)
class Result:
    """A rung, and what was found on it."""

    rung: Rung
    found: Found

    @property
    def failed(self) -> bool:
        """Whether it ran and failed, which is another thing than not to be run here."""
        return bool(self.found.failure) and not self.found.failure.startswith(("not run: ", "refused: "))

    @property
    def line(self) -> str:
        """For whoever waits."""
        found = self.found
        if found.failure:
            return f"{self.rung.name}: {found.failure}"
        peak = "" if found.peak_mib is None else f", {found.peak_mib:,.0f} MiB"
        agrees = f"cosine {found.cosine:.5f}, ready in {found.ready_s:.0f} s"
        return f"{self.rung.name}: {found.median_ms:.2f} ms{peak}, {agrees}"


def network_section(network: str, batch: int, results: Sequence[Result], *, tiny: bool) -> Section:
    """One network at one batch size. ``results`` are not empty."""
    fp32_ms = next(
        (each.found.median_ms for each in results if each.rung.name == "fp32" and not each.found.failure), None
    )
    published = {} if tiny or batch != BATCH else FIGURES[network]
    rows = [_row(result, fp32_ms, published.get(result.rung.name)) for result in results]
    failures = [f"{result.rung.name}: {result.found.failure}" for result in results if result.failed]
    about = _TINY if tiny else _ABOUT[network]
    return Section(f"{_TITLES[network]}, batch {batch}", about, rows, notes=[_COLUMNS], failures=failures)


def _row(result: Result, fp32_ms: float | None, published: Figure | None) -> Row:
    found, ran = result.found, not result.found.failure
    return {
        "rung": result.rung.name,
        "what": result.rung.about,
        "median ms": round(found.median_ms, 3) if ran else None,
        "times fp32": round(fp32_ms / found.median_ms, 2) if ran and fp32_ms is not None else None,
        "peak MiB": None if found.peak_mib is None else round(found.peak_mib),
        "cosine": round(found.cosine, 6) if ran else None,
        "SQNR dB": None if found.sqnr_db is None else round(found.sqnr_db, 1),
        "ready s": round(found.ready_s, 1) if ran else None,
        "came to": found.failure.replace("|", "/") or "measured",
        _NOT_OURS: None if published is None else published.ms,
    }


def published_section() -> Section:
    """The figures of others, on a page that has ours."""
    rows: list[Row] = [
        {"network": network, "rung": name, "what": BY_NAME[name].about, "ms": figure.ms, "peak GB": figure.peak_gb}
        for network, figures in FIGURES.items()
        for name, figure in figures.items()
    ]
    about = (
        f"By {SOURCE}, on {HARDWARE}, at batch {BATCH} for both networks. **Nothing in this table was measured by this "
        "project**: the GPU, the power it may draw, the versions and the weights are others, so that a difference to "
        "the tables above says little by itself."
    )
    return Section("Published elsewhere, not measured here", about, rows)
