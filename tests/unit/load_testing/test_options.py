"""Options as they come from the command line and from Locust's page: as text."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
from loadtests.options import LoadTestError, add_options, read_options, read_thresholds
from loadtests.thresholds import Allowance, Thresholds


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    add_options(parser)
    return parser.parse_args(["--model", "bert", *arguments])


def test_a_model_is_all_that_must_be_named() -> None:
    options = read_options(parse())
    assert (options.model, options.model_version, options.batch, options.variable_size) == ("bert", "", 1, 1)
    assert (options.shapes, options.input_data, options.deadline_s) == ({}, None, 10)
    assert read_thresholds(parse()) == Thresholds(None, Allowance(0, is_share=False), None)


def test_what_is_given_is_read() -> None:
    arguments = parse(
        "--batch=4", "--shape=IMAGE:3,224,224 a:b:7", "--input-data=rows.json", "--deadline-seconds=0.5",
        "--p99-ms=12.5", "--max-failures=0.1%", "--min-rps=200",
    )  # fmt: skip
    options = read_options(arguments)
    assert options.shapes == {"IMAGE": (3, 224, 224), "a:b": (7,)}
    assert (options.batch, options.input_data, options.deadline_s) == (4, Path("rows.json"), 0.5)
    assert read_thresholds(arguments) == Thresholds(12.5, Allowance(0.1, is_share=True), 200)


@pytest.mark.parametrize(
    ("flag", "value", "advice"),
    [
        ("--model", "", "must name"),
        ("--batch", "0", "at least 1"),
        ("--batch", "two", "at least 1"),
        ("--variable-size", "-1", "at least 1"),
        ("--shape", "INPUT0", "such as INPUT0:3,224"),
        ("--shape", "INPUT0:3,-1", "such as INPUT0:3,224"),
        ("--deadline-seconds", "0", "above 0"),
        ("--p99-ms", "inf", "above 0"),
        ("--min-rps", "fast", "above 0"),
        ("--max-failures", "few", "a count, such as 5, or a share, such as 0.1%"),
        ("--max-failures", "0.1", "a count, such as 5, or a share, such as 0.1%"),
    ],
)
def test_an_option_that_cannot_be_is_named_with_what_could_be(flag: str, value: str, advice: str) -> None:
    arguments = parse(f"{flag}={value}")
    with pytest.raises(LoadTestError) as caught:
        (read_options(arguments), read_thresholds(arguments))
    assert flag in str(caught.value)
    assert advice in str(caught.value)
