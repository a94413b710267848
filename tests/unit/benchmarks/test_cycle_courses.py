"""Whether what a server holds grows from cycle to cycle, and what a page says of it."""

import os

import pytest
from benchmarks.cycle_courses import (
    ARTIFACT_BOUNDS_KIB,
    BOUNDS_KIB,
    Course,
    deleted,
    differing_section,
    same_section,
    slope,
)


def course(resident_kib: list[float], mappings: list[int] | None = None) -> Course:
    count = len(resident_kib)
    maps = mappings or [400] * count
    return Course(resident_kib, [20] * count, [10] * count, maps, [each - 400 for each in maps], [0.01] * count)


def test_the_slope_is_what_comes_to_it_from_one_to_the_next() -> None:
    assert slope([5.0, 7.0, 9.0, 11.0]) == pytest.approx(2)
    assert slope([5.0, 9.0, 5.0, 9.0, 5.0]) == pytest.approx(0, abs=1e-9)


def test_a_single_value_has_no_slope() -> None:
    assert slope([5.0]) == slope([]) == 0.0


def test_compiled_code_is_mapped_from_files_that_are_gone() -> None:
    lines = [
        "7f00-7f01 r-xp 00000000 fe:00 12 /tmp/tmpab/cabc.main.so (deleted)",
        "7f01-7f02 r-xp 00000000 fe:00 13 /usr/lib/libc.so.6",
        "7f02-7f03 rw-s 00000000 00:01 14 /memfd:region (deleted)",
        "7f03-7f04 rw-p 00000000 00:00 0 ",
    ]
    assert deleted(lines) == 1


def test_a_course_notes_what_a_process_holds() -> None:
    found = Course()
    found.note(os.getpid(), 0.5)
    assert found.resident_kib[0] > 1024
    assert found.files[0] > 2
    assert found.threads[0] >= 1
    assert found.mappings[0] > 10
    assert found.load_s == [0.5]


def test_what_a_first_load_brings_does_not_count() -> None:
    section = same_section({"eager": course([1000.0, 9000.0, 9500.0, 9500.0, 9500.0, 9500.0])}, "preheat 1")
    (row,) = section.rows
    assert (row["held"], row["KiB a cycle, second half"], row["cycles"]) == ("yes", 0.0, 6)
    assert not section.failures


def test_what_grows_by_more_than_its_bound_is_a_failure() -> None:
    steps = [2 * BOUNDS_KIB["eager"] * number for number in range(10)]
    section = same_section({"eager": course(steps), "double": course([5.0] * 10)}, "preheat 1")
    assert [row["held"] for row in section.rows] == ["no", "yes"]
    assert section.failures == ["eager grows by 32.0 KiB a cycle, and may by 16"]
    assert [plot.name for plot in section.plots] == ["eager", "double"]


def test_of_artifacts_that_differ_mappings_are_said_too() -> None:
    section = differing_section({"torch_compile": course([0.0, 900.0, 1400.0, 1900.0], [500, 510, 520, 530])})
    (row,) = section.rows
    assert (row["KiB an artifact"], row["mappings an artifact"], row["of them compiled code"]) == (500, 10.0, 10.0)
    assert row["held"] == "yes"


def test_of_artifacts_that_differ_there_is_a_bound_as_well() -> None:
    step = 2 * ARTIFACT_BOUNDS_KIB["torch_compile"]
    section = differing_section({"torch_compile": course([0.0, step, 2 * step, 3 * step])})
    assert section.failures == ["torch_compile grows by 2048 KiB an artifact, and may by 1024"]
