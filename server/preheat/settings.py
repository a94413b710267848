"""The server's settings: one table of fields that drives the command line, the environment and validation."""

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG_LEVELS = ("debug", "info", "warning", "error")
CONTROL_MODES = ("watch", "explicit", "none")
TRANSPORTS = ("grpcio", "native", "auto")
COMPRESSIONS = ("none", "low", "medium", "high")
# A protobuf message, and so a gRPC message, cannot be larger.
_MAX_MESSAGE_BYTES = 2**31 - 1
_MAX_SECONDS = 86400.0
# More often, and connections are ended faster than they can be made.
_LEAST_INTERVAL_S = 1.0
# Less, and a load takes a hundred times as long as it might.
_LEAST_SHARE = 0.01
# What gRPC, and the libraries below it, take as a number.
_MOST_COUNT = 2**31 - 1
ENVIRONMENT_PREFIX = "PREHEAT_"


class InvalidSetting(ValueError):
    """A setting that cannot be.

    The text names it, its value and what is allowed. Raised by settings, shown by the CLI.
    """


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ValueError("must be a port from 1 to 65535, or 0 for a free one")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _MAX_SECONDS:
        raise ValueError(f"must be seconds, from 0 to {_MAX_SECONDS:.0f}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not _LEAST_SHARE <= value <= 1:
        raise ValueError(f"must be a share, from {_LEAST_SHARE} to 1")
    return value


def _second_or_more(text: str) -> float:
    try:
        value = _seconds(text)
    except ValueError:
        value = 0.0
    if value < _LEAST_INTERVAL_S:
        raise ValueError(f"must be seconds, from {_LEAST_INTERVAL_S:.0f} to {_MAX_SECONDS:.0f}")
    return value


def _second_or_more_or_never(text: str) -> float:
    value = _seconds(text)
    if 0 < value < _LEAST_INTERVAL_S:
        raise ValueError(f"must be seconds, from {_LEAST_INTERVAL_S:.0f} to {_MAX_SECONDS:.0f}, or 0 for never")
    return value


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return parse


def _switch(text: str) -> bool:
    return _one_of("true", "false")(text.lower()) == "true"


def _count_or_zero(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_COUNT:
        raise ValueError(f"must be a whole number, up to {_MOST_COUNT}")
    return int(text)


def _message_bytes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_MESSAGE_BYTES:
        raise ValueError(f"must be bytes, from 1 to {_MAX_MESSAGE_BYTES}")
    return int(text)


def _names(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if text and not all(names):
        raise ValueError("must be names separated by commas")
    return ",".join(names)


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _setting(default: Any, parse: Callable[[str], Any], text: str) -> Any:
    return field(default=default, metadata={"parse": parse, "help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator decides.

    Only the composition root sees it whole; the rest of the server is passed what it uses.
    """

    repositories: tuple[Path, ...]
    host: str = _setting("127.0.0.1", _text, "address to listen on, for gRPC and for metrics")
    grpc_port: int = _setting(8001, _port, "port for gRPC; 0 takes a free one and logs it")
    metrics_port: int = _setting(8002, _port, "port for Prometheus metrics; 0 takes a free one and logs it")
    transport: str = _setting(
        "auto",
        _one_of(*TRANSPORTS),
        "grpcio: complete; native: several times the small requests a second, for trusted networks, needs "
        "preheat[native]; auto: native if it can do what is asked and --trusted-network is true, else grpcio",
    )
    trusted_network: bool = _setting(
        False,  # noqa: FBT003 - it is the value
        _switch,
        "true: nobody hostile can reach the server, so the native transport may serve; false: it may on addresses of "
        "this machine and of private networks, if --transport asks for it",
    )
    max_message_bytes: int = _setting(_MAX_MESSAGE_BYTES, _message_bytes, "how large a request may be")
    allow_client_shm: bool = _setting(
        False,  # noqa: FBT003 - it is the value
        _switch,
        "true: clients on this machine may register shared memory, which lets them end the server by shrinking it, and "
        "memory of a GPU, by CUDA IPC",
    )
    max_concurrent_streams: int = _setting(
        0, _count_or_zero, "how many calls a connection may have at once; 0 leaves it to the transport"
    )
    keepalive_seconds: float = _setting(
        60.0, _second_or_more, "how long a connection may be silent before it is asked whether it lives"
    )
    keepalive_timeout_seconds: float = _setting(
        20.0, _second_or_more, "how long a connection that was asked has to answer; then it is closed"
    )
    max_connection_age_seconds: float = _setting(
        0.0,
        _second_or_more_or_never,
        "after how long clients are told to connect anew, so that balancers can spread them; 0: never; grpcio only",
    )
    response_compression: str = _setting(
        "none",
        _one_of(*COMPRESSIONS),
        f"how much answers are compressed, for clients that take it: {', '.join(COMPRESSIONS)}; grpcio only",
    )
    tls_certificate: str = _setting(
        "", str, "file with the server's certificate chain, in PEM: serve with TLS; needs --tls-key; grpcio only"
    )
    tls_key: str = _setting("", str, "file with the private key of --tls-certificate, in PEM")
    tls_client_ca: str = _setting(
        "", str, "file with certificates, in PEM: clients must show one that is signed by one of these"
    )
    id: str = _setting("preheat", _text, "the server's name in its metadata")
    model_control_mode: str = _setting(
        "watch",
        _one_of(*CONTROL_MODES),
        "watch: load every model at the start, and later what changes in the repositories, and what clients ask for by "
        "RPC; explicit: load --load-models, and what clients ask for by RPC; none: load every model, at the start only",
    )
    load_models: str = _setting(
        "", _names, "with explicit control, the models to load at the start, separated by commas"
    )
    allow_model_upload: bool = _setting(
        False,  # noqa: FBT003 - it is the value
        _switch,
        "true: clients may send models, which is code that the server runs: by the load RPC, and by preheat repo push",
    )
    settle_seconds: float = _setting(
        1.0,
        _seconds,
        "how long files must not have changed before they are loaded; what arrives by a rename is at once",
    )
    repository_poll_seconds: float = _setting(
        15.0,
        _second_or_more,
        "how often all of the repositories is looked through for changes, beside what the file system tells of them",
    )
    rollback_seconds: float = _setting(
        300.0,
        _seconds,
        "how long what was replaced stays in memory, if there is room, to be rolled back to in one step; 0: not at all",
    )
    import_backends: str = _setting(
        "",
        _names,
        "backends to import at the start, beside those of the models that are there then, separated by commas: what is "
        "dropped in later needs them, and to import one beside traffic is slow, and requests may wait for it",
    )
    load_concurrency: int = _setting(
        max(1, min(4, os.cpu_count() or 1)), _count, "how many model versions are loaded at a time"
    )
    load_share: float = _setting(
        0.125,
        _share,
        "for how much of the time loads may work, all together, while other models are asked, so that those do not get "
        "slower: 0.125 has a load take some ten times as long as it might; 1: all of it",
    )
    max_queue_requests: int = _setting(
        1024, _count, "how many requests may wait for a model version that sets no max_queue_size; more are refused"
    )
    max_queue_bytes: int = _setting(
        2**30, _count, "how many bytes of request payload may wait for a model version; more are refused"
    )
    cache_dir: str = _setting(
        "auto",
        _text,
        "folder of the compile cache; auto: $XDG_CACHE_HOME/preheat or ~/.cache/preheat, if it can be used; "
        "none: no cache",
    )
    cache_max_bytes: int = _setting(
        10 * 2**30, _count, "how many bytes the compile cache may keep; what was not used for longest goes first"
    )
    lame_duck_seconds: float = _setting(
        0.0, _seconds, "on SIGTERM, how long to go on serving while reporting not ready, so that balancers can notice"
    )
    exit_timeout_seconds: float = _setting(
        30.0,
        _seconds,
        "on SIGTERM, how long accepted requests may take before they get an error",
    )
    log_level: str = _setting("info", _one_of(*LOG_LEVELS), f"what to log: {', '.join(LOG_LEVELS)}")


def option_fields() -> list["dataclasses.Field[Any]"]:
    """The fields that are options: each has ``parse`` and ``help`` in its metadata."""
    return [each for each in dataclasses.fields(Settings) if each.metadata]


def default_of(each: "dataclasses.Field[Any]") -> str:
    """The default of a field, as it would be set."""
    return str(each.default).lower() if isinstance(each.default, bool) else str(each.default)


def flag_of(name: str) -> str:
    """The command-line flag of field ``name``."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """The environment variable of field ``name``."""
    return f"{ENVIRONMENT_PREFIX}{name.upper()}"


def make_settings(
    repositories: tuple[Path, ...], flags: Mapping[str, str | None], environment: Mapping[str, str]
) -> Settings:
    """Settings from flags (by field name, None where not given), then environment, then defaults.

    Raises InvalidSetting.
    """
    values: dict[str, Any] = {}
    for each in option_fields():
        flag, variable = flag_of(each.name), variable_of(each.name)
        if (text := flags.get(each.name)) is not None:
            values[each.name] = _parse(each, text, flag)
        elif variable in environment:
            values[each.name] = _parse(each, environment[variable], variable)
    return Settings(repositories=repositories, **values)


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none.

    They may be misspelt, so they are worth a warning; they may be Kubernetes describing a service called "preheat", so
    they are no error.
    """
    known = {variable_of(each.name) for each in option_fields()}
    return sorted(name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in known)


def configure_logging(level: str) -> None:
    """Log to standard error, one line an event."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )


def _parse(each: "dataclasses.Field[Any]", text: str, where: str) -> Any:
    try:
        return each.metadata["parse"](text)
    except ValueError as exc:
        raise InvalidSetting(f"{where}: {text!r}: {exc}") from exc
