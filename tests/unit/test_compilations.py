"""What is compiled is delivered to whoever owns the thread it was compiled on, and to nobody else."""

import threading

import pytest
from tests.unit.builders import PATIENCE_S, background

from preheat.compilations import Compilation, CompilationKind, recording, report_compilation


def graph(what: str) -> Compilation:
    return Compilation(CompilationKind.GRAPH, what)


def test_what_is_stated_while_nobody_records_is_dropped() -> None:
    seen: list[Compilation] = []
    report_compilation(graph("before"))
    with recording(seen.append):
        report_compilation(graph("during"))
    report_compilation(graph("after"))
    assert seen == [graph("during")]


def test_what_is_stated_within_an_inner_recording_is_delivered_to_that_alone() -> None:
    outer: list[Compilation] = []
    inner: list[Compilation] = []
    with recording(outer.append):
        report_compilation(graph("before"))
        with recording(inner.append):
            report_compilation(graph("within"))
        report_compilation(graph("after"))
    assert (outer, inner) == ([graph("before"), graph("after")], [graph("within")])


def test_a_recording_ends_with_its_block_whatever_ends_that() -> None:
    outer: list[Compilation] = []
    inner: list[Compilation] = []

    def fail() -> None:
        with recording(inner.append):
            raise RuntimeError("out of memory")

    with recording(outer.append):
        with pytest.raises(RuntimeError):
            fail()
        report_compilation(graph("after"))
    assert (outer, inner) == ([graph("after")], [])


def test_threads_see_only_what_is_compiled_on_themselves() -> None:
    meeting = threading.Barrier(2)

    def compile_something(what: str) -> list[Compilation]:
        seen: list[Compilation] = []
        with recording(seen.append):
            meeting.wait(PATIENCE_S)
            report_compilation(graph(what))
            meeting.wait(PATIENCE_S)
        return seen

    ours: list[Compilation] = []
    with recording(ours.append):
        results = [background(compile_something, what) for what in ("one", "other")]
        assert [each.result(PATIENCE_S) for each in results] == [[graph("one")], [graph("other")]]
    assert ours == []
