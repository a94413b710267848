"""Every problem of a configuration, where reading it stops at the first."""

from collections.abc import Callable, Iterator
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.message import Message

from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.configuration import CONFIG_FILE, parse_configuration

# A configuration with more problems than this has been told enough.
_MOST = 50


def config_problems(folder: Path) -> list[str]:
    """What is wrong with the configuration of the model in ``folder``, each in words that name file and key.

    What is blamed first is taken out, and what is left is read again: a field, an element of one, or a parameter is to
    blame if without it there is no problem, or another one.
    """
    file = folder / CONFIG_FILE
    try:
        proto = text_format.Parse(file.read_text(encoding="utf-8") if file.is_file() else "", pb.ModelConfig())
    except text_format.ParseError as exc:
        return [f"{file}:{exc}"]
    except (OSError, UnicodeError) as exc:
        return [f"{file}: cannot be read: {exc}"]
    problems: list[str] = []
    while len(problems) < _MOST:
        problem = _first_problem(proto, folder)
        if problem is None or problem in problems:
            return problems
        problems.append(problem)
        if not _take_out(proto, folder, problem):
            return problems
    return problems


def _first_problem(proto: pb.ModelConfig, folder: Path) -> str | None:
    try:
        parse_configuration(text_format.MessageToString(proto), folder)
    except InvalidConfig as exc:
        return str(exc)
    except OSError as exc:
        return f"{folder}: cannot be read: {exc}"
    return None


def _take_out(proto: pb.ModelConfig, folder: Path, problem: str) -> bool:
    """Take out of ``proto`` what ``problem`` is about; whether it was found."""
    for remove in _removals(proto):
        without = pb.ModelConfig()
        without.CopyFrom(proto)
        remove(without)
        if _first_problem(without, folder) != problem:
            proto.CopyFrom(without)
            return True
    return False


def _removals(proto: pb.ModelConfig) -> Iterator[Callable[[pb.ModelConfig], None]]:
    """Ways to take something out, the smallest things first."""
    for key in sorted(proto.parameters):
        yield lambda without, key=key: without.parameters.pop(key)  # type: ignore[misc]
    for field, value in proto.ListFields():
        if isinstance(value, Message):
            for inner, _ in value.ListFields():
                yield lambda without, outer=field.name, name=inner.name: getattr(without, outer).ClearField(name)  # type: ignore[misc]
        elif hasattr(value, "add"):
            for index in range(len(value)):
                yield lambda without, name=field.name, at=index: getattr(without, name).pop(at)  # type: ignore[misc]
    for field, _ in proto.ListFields():
        yield lambda without, name=field.name: without.ClearField(name)  # type: ignore[misc]
