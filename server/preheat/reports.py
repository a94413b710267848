"""What an operator is told of the models: their states, what loading took, and what became of requests."""

from collections.abc import Sequence

from preheat.backend import Buckets
from preheat.messages import VersionReport
from preheat.models.handle import Handle
from preheat.models.registry import Registry, VersionState
from preheat.telemetry.statistics import Statistics, VersionStatistics


def version_reports(registry: Registry, statistics: Statistics, names: Sequence[str]) -> list[VersionReport]:
    """A report of every version that was tried, and of the models of ``names`` that were not, sorted. Any thread."""
    handles = {(handle.name, handle.version): handle for handle in registry.handles()}
    counted = statistics.snapshot()
    reports: list[VersionReport] = []
    for row in registry.index():
        if row.version is None:
            reports.append(VersionReport(row.model, None, row.state.value, row.reason))
        else:
            key = (row.model, row.version)
            reports.append(_report(row, row.version, handles.get(key), counted.get(key, VersionStatistics())))
    tried = {report.model for report in reports}
    reports += [VersionReport(name, None, "") for name in names if name not in tried]
    return sorted(reports, key=lambda report: (report.model, report.version or 0))


def _report(row: VersionState, version: int, handle: Handle | None, counted: VersionStatistics) -> VersionReport:
    requests, failures = counted.requests, sum(counted.failures.values())
    if handle is None:
        return VersionReport(row.model, version, row.state.value, row.reason, requests=requests, failures=failures)
    both = counted.load_s is not None and counted.warmup_s is not None
    return VersionReport(
        row.model,
        version,
        row.state.value,
        backend=handle.completed.configuration.backend,
        buckets=_tell(handle.completed.buckets),
        load_s=(counted.load_s or 0.0) + (counted.warmup_s or 0.0) if both else None,
        warmup_s=counted.warmup_s,
        memory_bytes=counted.memory_bytes,
        requests=requests,
        failures=failures,
        note=row.reason,
    )


def _tell(buckets: Buckets) -> str:
    """Such as "batch 1,2,4; sequence 32,64"."""
    sizes = {"batch": buckets.rows, **buckets.sizes}
    return "; ".join(f"{name} {','.join(map(str, each))}" for name, each in sizes.items() if each)
