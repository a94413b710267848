"""What is compiled before an instance is ready is warm-up; what is compiled after, a request waited for."""

from tests.unit.builders import Events

from preheat.compilations import Compilation, CompilationKind, recording, report_compilation
from preheat.scheduling.compilation_record import CompilationRecord
from preheat.telemetry.events import Compiled

EARLY = Compilation(CompilationKind.GRAPH, "batch 4", 1.5, cached=True)
LATE = Compilation(CompilationKind.ENGINE, "batch 3", 2.5)


def test_every_compilation_becomes_an_event_that_says_whether_the_instance_was_ready() -> None:
    events = Events()
    record = CompilationRecord("bert", 3, 1, events)
    record.record(EARLY)
    record.ready = True
    record.record(LATE)
    assert events.seen == [
        Compiled("bert", 3, 1, "graph", "batch 4", 1.5, cached=True, ready=False),
        Compiled("bert", 3, 1, "engine", "batch 3", 2.5, cached=False, ready=True),
    ]


def test_what_is_compiled_before_is_kept_for_the_warm_up_and_what_is_compiled_after_is_not() -> None:
    record = CompilationRecord("m", 1, 0, Events())
    record.record(EARLY)
    record.ready = True
    record.record(LATE)
    assert record.seen == [EARLY]


def test_a_record_listens_to_a_thread() -> None:
    record = CompilationRecord("m", 1, 0, Events())
    with recording(record.record):
        report_compilation(EARLY)
    assert record.seen == [EARLY]
