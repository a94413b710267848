"""Whether an answer can be of what was served then, and how times with and without a replacement are told apart."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.arrivals import Answer
from benchmarks.swap_answers import MAIN, OTHER, Expected, Phase, Seen, Times, Window, Witness
from benchmarks.swap_artifacts import Artifact

OLD, NEW = Artifact(1.0, "fp32", "eager", {}), Artifact(1.04, "int8", "onnxruntime", {})
REFERENCES = {
    "fp32": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32),
    "int8": np.array([[0.8, 0.6], [0.6, 0.8]], np.float32),
}
ANSWER = Answer(MAIN, 0, 10.0, 10.0, 10.5, "1", b"", "")


def vector(length: float, *direction: float) -> bytes:
    return (length * np.array(direction, np.float32)).tobytes()


def witness() -> Witness:
    return Witness([OLD, NEW], REFERENCES, [b"echo"])


def seen(sent_s: float, done_s: float, *, version: str = "1", mark: float = 1.0, error: float = 0.0) -> Seen:
    return Seen(sent_s, sent_s, done_s, version, mark, "fp32" if mark == 1.0 else "int8", error)


def swapped() -> Expected:
    """From the old, version 1, to the new, version 2: a file changed at 10, the new answered first at 12."""
    expected = Expected()
    expected.may(OLD.mark, 1, 0.0)
    expected.may(NEW.mark, 2, 10.0)
    expected.only(NEW.mark, 2, 12.0)
    return expected


def test_an_answer_is_of_the_artifact_that_it_is_as_long_as_and_held_against_its_reference() -> None:
    found = witness()
    found.take(ANSWER._replace(request=1, output=vector(1.0, 0.0, 1.0)))
    found.take(ANSWER._replace(request=1, output=vector(1.04, 0.0, 1.0)))
    right, wrong = found.seen
    assert (right.kind, wrong.kind) == ("fp32", "int8")
    assert [right.error, wrong.error] == pytest.approx([0, np.hypot(0.6, 0.2)], abs=1e-5)


def test_what_is_as_long_as_no_artifact_is_of_none() -> None:
    found = witness()
    found.take(ANSWER._replace(output=vector(1.02, 1.0, 0.0)))
    assert found.seen[0].kind == ""
    assert "of length 1.020" in swapped().why_not(found.seen[0])


def test_nothing_that_is_no_number_is_right() -> None:
    found = witness()
    found.take(ANSWER._replace(output=vector(float("nan"), 1.0, 0.0)))
    assert swapped().why_not(found.seen[0])
    assert swapped().why_not(seen(1, 2, error=float("nan")))


def test_the_latest_answer_is_that_to_what_was_sent_last() -> None:
    found = witness()
    found.take(ANSWER._replace(sent_s=11.0, output=vector(1.04, 0.8, 0.6)))
    found.take(ANSWER._replace(sent_s=10.0, done_s=99.0, output=vector(1.0, 1.0, 0.0)))
    assert found.latest == pytest.approx(1.04)


def test_answers_of_the_other_model_are_held_against_what_was_sent() -> None:
    found = witness()
    found.take(ANSWER._replace(stream=OTHER, output=b"echo"))
    found.take(ANSWER._replace(stream=OTHER, output=b"else"))
    assert (found.others, found.wrong_others, found.seen) == (2, 1, [])


@pytest.mark.parametrize(
    "each",
    [
        seen(1, 2),
        seen(10.5, 11, version="1"),
        seen(10.5, 11, version="2", mark=NEW.mark, error=0.1),
        seen(11.9, 20, version="1"),
        seen(13, 14, version="2", mark=NEW.mark),
    ],
)
def test_both_may_answer_from_the_change_until_the_new_one_has_and_the_old_one_what_it_had_taken(each: Seen) -> None:
    assert swapped().why_not(each) == ""


@pytest.mark.parametrize(
    ("each", "why"),
    [
        (seen(5, 6, version="2", mark=NEW.mark), "of length 1.040, when only 1.00 could be"),
        (seen(13, 14), "of length 1.000, when only 1.04 could be"),
        (seen(10.5, 11, version="2"), "of version 2, when it was 1"),
        (seen(1, 2, error=0.01), "0.0100 from what fp32 answers, allowed is 0.001"),
    ],
)
def test_an_answer_that_cannot_be_is_wrong_and_why_is_said(each: Seen, why: str) -> None:
    assert swapped().why_not(each) == why


def test_what_was_replaced_may_come_back() -> None:
    expected = swapped()
    expected.may(OLD.mark, 3, 20.0)
    assert expected.why_not(seen(21, 22, version="3")) == ""
    assert expected.why_not(seen(21, 22, version="1")) == "of version 1, when it was 3"


def test_only_requests_to_the_other_model_may_fail_and_only_while_it_is_away() -> None:
    expected = Expected()
    expected.other_was_away(10.0, 12.0)
    failure = ANSWER._replace(stream=OTHER, sent_s=11.0, done_s=11.1, failure="UNAVAILABLE")
    assert expected.explains(failure)
    assert not expected.explains(failure._replace(stream=MAIN))
    assert not expected.explains(failure._replace(sent_s=12.1, done_s=12.2))


def phase() -> Phase:
    """Ten seconds of ten requests each, which take 1 ms, 5 ms in the first window and 9 ms in the second."""
    windows = [Window("a", 2.0, 4.0), Window("b", 6.0, 7.0)]
    due = [number / 10 for number in range(100)]
    took = [0.005 if 2 <= at < 4 else 0.009 if 6 <= at < 7 else 0.001 for at in due]
    asked = [seen(at, at + each) for at, each in zip(due, took, strict=True)]
    return Phase(Times(asked), windows, 0.0, 10.0)


def test_the_quiet_beside_a_window_is_what_is_before_and_after_it() -> None:
    assert phase().quiet(0) == [(0.0, 2.0), (4.0, 6.0)]
    assert phase().quiet(1) == [(4.0, 6.0), (7.0, 10.0)]
    assert phase().quiet(0, 1) == [(0.0, 2.0), (4.0, 6.0), (7.0, 10.0)]


def test_windows_are_compared_with_the_quiet_beside_them() -> None:
    quiet, everything, first, second = phase().rows()
    assert (quiet["requests"], quiet["p99 ms"], quiet["times that"]) == (70, 1.0, None)
    assert (everything["while"], everything["times"], everything["requests"]) == (
        "all while something is replaced",
        2,
        30,
    )
    assert (first["while"], first["seconds each"], first["p99 ms"], first["times that"]) == ("a", 2.0, 5.0, 5.0)
    assert (second["while"], second["p99 ms"], second["times that"]) == ("b", 9.0, 9.0)


def test_each_window_has_a_row_for_programs() -> None:
    assert [row["p99 ms"] for row in phase().series()] == [5.0, 9.0]
    assert phase().series()[1] == {"what": "b", "at s": 6.0, "s": 1.0, "p99 ms": 9.0, "before": 1.0, "after": 1.0}


def test_a_window_without_answers_has_no_percentiles() -> None:
    (*_, row) = Phase(Times([]), [Window("a", 2.0, 4.0)], 0.0, 10.0).rows()
    assert (row["requests"], row["p99 ms"], row["times that"]) == (0, None, None)


def test_the_course_has_percentiles_and_marks_of_what_was_done() -> None:
    times_s, courses = phase().course(2.0)
    assert times_s == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert courses["p50 ms"] == [1.0, 5.0, 1.0, 5.0, 1.0]
    assert courses["replacing"] == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_requests_are_timed_from_when_they_were_due() -> None:
    late = replace(seen(5.0, 5.5), due_s=4.0)
    assert list(Times([late]).within((4.0, 5.0))) == [1500.0]
    assert list(Times([late]).within((5.0, 6.0))) == []
