"""Every error that may reach a client has a status, the one Triton gives, and a text that fits a header."""

from collections.abc import Iterator

import pytest
from grpc import StatusCode

from preheat import errors
from preheat.errors import ExecutionFailed, InvalidRequest, ServingError
from preheat.transport.status import code_of, text_of

CODES = {
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: StatusCode.NOT_FOUND,
    errors.ModelUnavailable: StatusCode.UNAVAILABLE,
    errors.QueueFull: StatusCode.UNAVAILABLE,
    errors.MessageTooLarge: StatusCode.RESOURCE_EXHAUSTED,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.RegionNotFound: StatusCode.NOT_FOUND,
    errors.OutputTooLarge: StatusCode.INTERNAL,
    errors.RequestTimeout: StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.RequestCancelled: StatusCode.CANCELLED,
    errors.ServerStopping: StatusCode.UNAVAILABLE,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.ExecutionFailed: StatusCode.INTERNAL,
    errors.LoadFailed: StatusCode.INVALID_ARGUMENT,
    errors.InvalidConfig: StatusCode.INVALID_ARGUMENT,
    errors.InvalidArtifact: StatusCode.INVALID_ARGUMENT,
    errors.BackendMissing: StatusCode.INVALID_ARGUMENT,
}


def descendants(kind: type[ServingError]) -> Iterator[type[ServingError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from descendants(child)


def test_every_error_has_its_code() -> None:
    assert {kind: code_of(kind("x"), "ModelInfer") for kind in CODES} == CODES
    assert code_of(errors.InternalError(), "ModelInfer") is StatusCode.INTERNAL
    assert set(descendants(ServingError)) == {*CODES, errors.InternalError}


class OutOfTokens(ExecutionFailed):
    """A plugin's own kind of a known error."""


class OutOfCoffee(ServingError):
    """A plugin's own error."""


def test_an_error_of_a_plugin_has_the_code_of_what_it_derives_from() -> None:
    assert code_of(OutOfTokens("x"), "ModelInfer") is StatusCode.INTERNAL


@pytest.mark.parametrize("error", [ServingError("x"), OutOfCoffee("x")])
def test_an_error_of_no_kind_we_know_is_internal(error: ServingError) -> None:
    assert code_of(error, "ModelInfer") is StatusCode.INTERNAL


def test_some_errors_have_another_code_on_some_rpcs() -> None:
    error = errors.ModelNotFound("x")
    codes = [code_of(error, rpc) for rpc in ("ModelInfer", "ModelStatistics", "RepositoryModelLoad")]
    assert codes == [StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT, StatusCode.INTERNAL]


@pytest.mark.parametrize("length", [0, 1, 600])
def test_a_text_that_fits_is_whole(length: int) -> None:
    assert text_of(InvalidRequest("ä" * length)) == "ä" * length


def test_a_text_that_does_not_fit_is_cut_and_says_so() -> None:
    text = text_of(InvalidRequest("abc" * 1000))
    assert (len(text), text[-6:]) == (600, "abc...")
