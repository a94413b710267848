"""The server's own parameters are parsed; the backend's are passed on unread."""

from pathlib import Path

import pytest

from preheat.backend import Dimension, Outside
from preheat.errors import InvalidConfig
from preheat.repository.server_parameters import ServerParameters, parse_server_parameters

FILE = Path("repository/m/config.pbtxt")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("preheat.buckets", "4", ServerParameters(buckets=(4,))),
        ("preheat.buckets", "8, 1,2,8", ServerParameters(buckets=(1, 2, 8))),
        ("preheat.threads", "3", ServerParameters(threads=3)),
        ("preheat.accept_row_dependence", "true", ServerParameters(accept_row_dependence=True)),
        ("preheat.accept_row_dependence", "false", ServerParameters()),
        ("preheat.row_independent", "true", ServerParameters(row_independent=True)),
        ("preheat.row_independent", "false", ServerParameters(row_independent=False)),
        ("preheat.buckets.sequence", "64, 16,16", ServerParameters(size_buckets={"sequence": (16, 64)})),
        ("preheat.buckets.a.b", "4", ServerParameters(size_buckets={"a.b": (4,)})),
        # As it is written: what it may be, the input's datatype decides.
        ("preheat.pad.ids", " 0 ", ServerParameters(pads={"ids": " 0 "})),
        ("preheat.pad.a.b", "", ServerParameters(pads={"a.b": ""})),
        ("preheat.outside_buckets", "refuse", ServerParameters(outside_buckets=Outside.REFUSE)),
        ("preheat.outside_buckets", "eager", ServerParameters(outside_buckets=Outside.EAGER)),
        ("preheat.outside_buckets", "compile", ServerParameters(outside_buckets=Outside.COMPILE)),
        ("preheat.padding_tolerance", "0", ServerParameters(padding_tolerance=0.0)),
        ("preheat.padding_tolerance", "2e-3", ServerParameters(padding_tolerance=0.002)),
        ("preheat.shape.x", "height,_,width", ServerParameters(axis_names={"x": ("height", None, "width")})),
        ("preheat.shape.a.b", "seq", ServerParameters(axis_names={"a.b": ("seq",)})),
        ("preheat.dimension.seq", "1..512", ServerParameters(dimensions={"seq": Dimension("seq", 1, 512)})),
        ("preheat.dimension.seq", "0..", ServerParameters(dimensions={"seq": Dimension("seq", 0, None)})),
        (
            "preheat.dimension.seq",
            "32 .. 512 / 32",
            ServerParameters(dimensions={"seq": Dimension("seq", 32, 512, 32)}),
        ),
    ],
)
def test_a_parameter_of_the_server_is_parsed(key: str, text: str, expected: ServerParameters) -> None:
    assert parse_server_parameters({key: text}, FILE) == (expected, {})


def test_keys_that_go_on_with_a_name_are_kept_apart_from_the_key_without() -> None:
    values = {
        "preheat.buckets": "1,2",
        "preheat.buckets.height": "3",
        "preheat.buckets.width": "4",
        "preheat.pad.x": "0",
    }
    assert parse_server_parameters(values, FILE)[0] == ServerParameters(
        buckets=(1, 2), size_buckets={"height": (3,), "width": (4,)}, pads={"x": "0"}
    )


def test_other_parameters_are_the_backends() -> None:
    values = {"mode": "fast", "preheat": "x", "preheat.threads": "1", "preheated.x": "y"}
    assert parse_server_parameters(values, FILE)[1] == {"mode": "fast", "preheat": "x", "preheated.x": "y"}


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("preheat.buckets", "0", "'0': must be whole numbers of at least 1, such as 4 or, for buckets, 1,2,8"),
        ("preheat.buckets", "1,,2", "'1,,2': must be whole numbers"),
        ("preheat.buckets", "", "'': must be whole numbers"),
        ("preheat.threads", "-1", "'-1': must be whole numbers"),
        ("preheat.accept_row_dependence", "yes", "'yes': must be true or false"),
        ("preheat.shape.x", "a,,b", "'a,,b': must name each dimension after the batch"),
        ("preheat.shape.x", "2d", "'2d': must name each dimension"),
        ("preheat.dimension.seq", "512", "'512': must be MIN..MAX, MIN.. or MIN..MAX/STEP"),
        ("preheat.dimension.seq", "..512", "'..512': must be MIN..MAX"),
        ("preheat.dimension.seq", "-1..512", "'-1..512': must be MIN..MAX"),
        ("preheat.dimension.seq", "9..1", "'9..1': the maximum must not be below the minimum"),
        ("preheat.dimension.seq", "1..9/0", "'1..9/0': the maximum must not be below the minimum, and the step"),
        ("preheat.bucket", "1", "unknown parameter; the server's are preheat.buckets, preheat.threads, "),
        ("preheat.row_independent", "1", "'1': must be true or false"),
        ("preheat.buckets.sequence", "0,4", "'0,4': must be whole numbers of at least 1"),
        ("preheat.buckets.sequence", "", "'': must be whole numbers of at least 1"),
        ("preheat.outside_buckets", "Eager", "'Eager': must be one of refuse, eager, compile"),
        ("preheat.outside_buckets", "", "'': must be one of refuse, eager, compile"),
        ("preheat.padding_tolerance", "1", "'1': must be a share from 0 up to 1, such as 0.01"),
        ("preheat.padding_tolerance", "-0.1", "'-0.1': must be a share"),
        ("preheat.padding_tolerance", "nan", "'nan': must be a share"),
        ("preheat.padding_tolerance", "1%", "'1%': must be a share"),
        ("preheat.outside_buckets.sequence", "eager", "unknown parameter; the server's are "),
        ("preheat.pad", "0", "preheat.buckets.NAME, preheat.pad.TENSOR"),
        ("preheat.pad.", "0", "unknown parameter"),
        ("preheat.shape", "a", "unknown parameter; the server's are "),
        ("preheat.shape.", "a", "unknown parameter"),
        ("preheat.dimension", "1..2", "preheat.shape.TENSOR, preheat.dimension.NAME"),
        ("preheat.", "1", "unknown parameter"),
    ],
)
def test_a_bad_parameter_is_refused_by_file_key_value_and_what_is_allowed(key: str, text: str, expected: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_server_parameters({key: text}, FILE)
    assert str(caught.value).startswith(f"{FILE}: parameters: {key}: ")
    assert expected in str(caught.value)
