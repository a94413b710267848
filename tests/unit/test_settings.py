"""Every setting has a flag, a variable, a default and a help text, and a bad value names where it came from."""

from pathlib import Path

import pytest

from preheat.settings import (
    InvalidSetting,
    Settings,
    flag_of,
    make_settings,
    option_fields,
    unknown_variables,
    variable_of,
)

REPOSITORIES = (Path("models"),)
NAMES = [each.name for each in option_fields()]
# A good value, and what it becomes.
GOOD: dict[str, tuple[str, object]] = {
    "host": ("::1", "::1"),
    "grpc_port": ("0", 0),
    "metrics_port": ("65535", 65535),
    "transport": ("native", "native"),
    "trusted_network": ("true", True),
    "max_message_bytes": ("1000", 1000),
    "allow_client_shm": ("true", True),
    "max_concurrent_streams": ("7", 7),
    "keepalive_seconds": ("1.5", 1.5),
    "keepalive_timeout_seconds": ("3", 3.0),
    "max_connection_age_seconds": ("600", 600.0),
    "response_compression": ("high", "high"),
    "tls_certificate": ("server.pem", "server.pem"),
    "tls_key": ("key.pem", "key.pem"),
    "tls_client_ca": ("ca.pem", "ca.pem"),
    "id": ("cat server", "cat server"),
    "model_control_mode": ("explicit", "explicit"),
    "load_models": ("a, b", "a,b"),
    "allow_model_upload": ("true", True),
    "settle_seconds": ("0.5", 0.5),
    "repository_poll_seconds": ("60", 60.0),
    "rollback_seconds": ("0", 0.0),
    "import_backends": ("eager, double", "eager,double"),
    "load_concurrency": ("3", 3),
    "load_share": ("0.5", 0.5),
    "max_queue_requests": ("1", 1),
    "max_queue_bytes": ("1000000", 1000000),
    "cache_dir": ("none", "none"),
    "cache_max_bytes": ("1073741824", 1073741824),
    "lame_duck_seconds": ("0", 0.0),
    "exit_timeout_seconds": ("2.5", 2.5),
    "log_level": ("debug", "debug"),
}
BAD: dict[str, tuple[list[str], str]] = {
    "host": (["", "  "], "must not be empty"),
    "grpc_port": (["", "-1", "65536", "1.5", "http"], "must be a port from 1 to 65535, or 0 for a free one"),
    "metrics_port": (["-1", "99999"], "must be a port from 1 to 65535, or 0 for a free one"),
    "transport": (["http", ""], "must be one of grpcio, native, auto"),
    "trusted_network": (["yes", "1", ""], "must be one of true, false"),
    "max_message_bytes": (["0", "1e3", "2147483648", ""], "must be bytes, from 1 to 2147483647"),
    "allow_client_shm": (["on", ""], "must be one of true, false"),
    "max_concurrent_streams": (["-1", "many", "99999999999"], "must be a whole number, up to 2147483647"),
    "keepalive_seconds": (["0", "0.0", "1e-9", "-1"], "must be seconds, from 1 to 86400"),
    "keepalive_timeout_seconds": (["-1", "x", "86401", "0.9"], "must be seconds, from 1 to 86400"),
    "max_connection_age_seconds": (["0.5", "1e-4"], "must be seconds, from 1 to 86400, or 0 for never"),
    "response_compression": (["gzip", ""], "must be one of none, low, medium, high"),
    # Whether they are files is seen when the server starts.
    "tls_certificate": ([], ""),
    "tls_key": ([], ""),
    "tls_client_ca": ([], ""),
    "id": ([""], "must not be empty"),
    "model_control_mode": (["poll", ""], "must be one of watch, explicit, none"),
    "load_models": (["a,,b", ","], "must be names separated by commas"),
    "allow_model_upload": (["yes", ""], "must be one of true, false"),
    "settle_seconds": (["-1", "soon"], "must be seconds, from 0 to 86400"),
    "repository_poll_seconds": (["0", "0.5", "86401"], "must be seconds, from 1 to 86400"),
    "rollback_seconds": (["-1", "ever"], "must be seconds, from 0 to 86400"),
    "import_backends": (["a,,b", ","], "must be names separated by commas"),
    "load_concurrency": (["0", "-1", "x"], "must be a whole number of at least 1"),
    "load_share": (["0", "-1", "1.01", "nan", "some", ""], "must be a share, from 0.01 to 1"),
    "max_queue_requests": (["0", "1e3"], "must be a whole number of at least 1"),
    "max_queue_bytes": (["0", "1GiB"], "must be a whole number of at least 1"),
    "cache_dir": ([""], "must not be empty"),
    "cache_max_bytes": (["0", "10GiB"], "must be a whole number of at least 1"),
    "lame_duck_seconds": (["-1", "soon"], "must be seconds, from 0 to 86400"),
    "exit_timeout_seconds": (["-0.1", "nan", "inf", "1e999", "86401", ""], "must be seconds, from 0 to 86400"),
    "log_level": (["INFO", "loud", ""], "must be one of debug, info, warning, error"),
}
BAD_CASES = [(name, text, allowed) for name, (texts, allowed) in BAD.items() for text in texts]


def test_the_tables_here_cover_every_setting() -> None:
    assert list(GOOD) == list(BAD) == NAMES


def test_without_flags_and_environment_settings_are_the_defaults() -> None:
    assert make_settings(REPOSITORIES, {}, {}) == Settings(repositories=REPOSITORIES)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_flag_a_variable_a_default_and_a_help_text(name: str) -> None:
    (each,) = [each for each in option_fields() if each.name == name]
    assert flag_of(name) == f"--{name.replace('_', '-')}"
    assert variable_of(name) == f"PREHEAT_{name.upper()}"
    assert each.metadata["help"]
    assert each.metadata["parse"](str(each.default)) == each.default


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_taken_from_its_flag_and_from_its_variable_and_the_flag_wins(name: str) -> None:
    text, expected = GOOD[name]
    from_flag = make_settings(REPOSITORIES, {name: text}, {})
    from_variable = make_settings(REPOSITORIES, {name: None}, {variable_of(name): text})
    from_both = make_settings(REPOSITORIES, {name: text}, {variable_of(name): "no good"})
    assert [getattr(each, name) for each in (from_flag, from_variable, from_both)] == [expected] * 3


@pytest.mark.parametrize(("name", "text", "allowed"), BAD_CASES)
def test_a_bad_value_names_its_flag_or_its_variable_and_what_is_allowed(name: str, text: str, allowed: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        make_settings(REPOSITORIES, {name: text}, {})
    assert str(caught.value) == f"{flag_of(name)}: {text!r}: {allowed}"
    with pytest.raises(InvalidSetting) as caught:
        make_settings(REPOSITORIES, {}, {variable_of(name): text})
    assert str(caught.value) == f"{variable_of(name)}: {text!r}: {allowed}"


def test_variables_that_look_like_settings_and_are_none_are_told() -> None:
    environment = {"PREHEAT_GRPC_PORT": "1", "PREHEAT_GRPCPORT": "1", "PREHEAT_PORT": "tcp://1", "PATH": "/bin"}
    assert unknown_variables(environment) == ["PREHEAT_GRPCPORT", "PREHEAT_PORT"]
