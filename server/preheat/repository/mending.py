"""Every problem of a configuration, where reading it stops at the first.

What is blamed first is mended, and what is left is read again, until nothing is blamed any more.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import text_format
from google.protobuf.message import Message

from preheat.errors import InvalidConfig
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.configuration import CONFIG_FILE, parse_configuration
from preheat.repository.names import is_model_name

# The way to a value: names of fields, numbers of elements, keys of maps.
Place: TypeAlias = tuple[Any, ...]
# A value for each of some places; None: what is there is taken out.
Repair: TypeAlias = Mapping[Place, Any]

# A configuration with more problems than this has been told enough.
_MOST = 50
_NAME = "repaired"
# What any number can be, but for those that others are held against.
_NUMBER = 1
_LARGE = {"max_batch_size": 2**20, "priority_levels": 100}
# One value on a line of its own, which the rest can be read without.
_SINGLE = re.compile(r"\s*\w+\s*:\s*[^{}\[\]<>]*")
_KEY = re.compile(r"(\w+)\s*:")
_ABSENT = re.compile(r"(?:(\w+): not set|needs (\w+) of )")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What can be read of a configuration, why the rest cannot be, and the keys that were in it."""

    proto: pb.ModelConfig
    problems: tuple[str, ...]
    dropped: frozenset[str]


def config_problems(folder: Path) -> list[str]:
    """What is wrong with the configuration of the model in ``folder``, each in words that name file and key."""
    try:
        parsed = parse_lines(folder / CONFIG_FILE)
    except (OSError, UnicodeError) as exc:
        return [f"{folder / CONFIG_FILE}: cannot be read: {exc}"]
    if is_model_name(folder.name):
        return [*parsed.problems, *_problems(parsed, folder)]
    name = _first_problem(pb.ModelConfig(), folder) or ""
    return [*parsed.problems, name, *_problems_by_another_name(parsed, folder)]


def parse_lines(file: Path) -> Parsed:
    """Read ``file`` line by line where it cannot be read as a whole; one that is not there is empty.

    Values that cannot be are left out with their lines; what makes more than a line unreadable is told, and nothing
    else is known then. Raises OSError, UnicodeError.
    """
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    problems: list[str] = []
    dropped: set[str] = set()
    while True:
        try:
            proto = text_format.Parse("\n".join(lines), pb.ModelConfig())
            return Parsed(proto, tuple(problems), frozenset(dropped))
        except text_format.ParseError as exc:
            problems.append(f"{file}:{exc}")
            at = (exc.GetLine() or 0) - 1
            if not 0 <= at < len(lines) or not _SINGLE.fullmatch(lines[at]) or len(problems) == _MOST:
                return Parsed(pb.ModelConfig(), tuple(problems), frozenset(pb.ModelConfig.DESCRIPTOR.fields_by_name))
            dropped.update(_KEY.findall(lines[at]))
            lines[at] = ""


def _problems_by_another_name(parsed: Parsed, folder: Path) -> list[str]:
    """What else is wrong with a model whose folder cannot be called as it is."""
    parsed.proto.ClearField("name")
    with tempfile.TemporaryDirectory() as place:
        other = Path(place) / "model"
        other.symlink_to(folder.resolve(), target_is_directory=True)
        return [text.replace(str(other), str(folder)) for text in _problems(parsed, other)]


def _problems(parsed: Parsed, folder: Path) -> list[str]:
    """What is wrong with what could be read. What is missing only since it was dropped is no problem of its own."""
    proto = pb.ModelConfig()
    proto.CopyFrom(parsed.proto)
    problems: list[str] = []
    seen: set[str] = set()
    while (problem := _first_problem(proto, folder)) is not None and len(seen) < _MOST and problem not in seen:
        seen.add(problem)
        absent = _ABSENT.search(problem)
        if absent is None or (absent[1] or absent[2]) not in parsed.dropped:
            problems.append(problem)
        if not _mend(proto, folder, problem):
            break
    return problems


def _first_problem(proto: pb.ModelConfig, folder: Path) -> str | None:
    try:
        parse_configuration(text_format.MessageToString(proto), folder)
    except InvalidConfig as exc:
        return str(exc)
    except OSError as exc:
        return f"{folder}: cannot be read: {exc}"
    return None


def _mend(proto: pb.ModelConfig, folder: Path, problem: str) -> bool:
    """Change in ``proto`` what ``problem`` is about, the least that makes it go; whether that was found."""
    for repair in _repairs(proto, problem):
        mended = pb.ModelConfig()
        mended.CopyFrom(proto)
        for place in sorted(repair, key=_depth, reverse=True):
            _put(mended, place, repair[place])
        if not _same(problem, _first_problem(mended, folder), proto, repair):
            proto.CopyFrom(mended)
            return True
    return False


def _same(before: str, after: str | None, proto: pb.ModelConfig, repair: Repair) -> bool:
    """Whether it is still the same problem: of another value, or of none where there has to be one."""
    if after is None:
        return False
    if after == before or repr(_NAME) in after:
        return True
    for place, value in repair.items():
        name, old, new = _name_of(place), _get(proto, place), 0 if value is None else value
        if before.replace(repr(old), repr(new)) == after:
            return True
        # What was taken out is needed.
        if value is None and (f"{name}: not set" in after or name in after.partition("set one of")[2]):
            return True
    return False


def _repairs(proto: pb.ModelConfig, problem: str) -> Iterator[Repair]:
    """What to try, in this order: what is said to be absent, what is named, the smallest things first, and the rest."""
    places = list(_places(proto, ()))
    for name in (each[1] or each[2] for each in _ABSENT.finditer(problem)):
        yield from _additions(proto, places, name)
    named = sorted(
        (place for place in places if _name_of(place) in problem), key=lambda place: problem.find(_name_of(place))
    )
    for some in (named, [place for place in places if place not in named]):
        for depth in sorted({len(place) for place in some}, reverse=True):
            level = [place for place in some if len(place) == depth]
            for place in level:
                yield from ({place: value} for value in _values(proto, place))
            yield from _together(level)


def _name_of(place: Place) -> str:
    """The field, or key, that is there, or has it as an element."""
    return str(place[-1] if isinstance(place[-1], str) else place[-2])


def _additions(proto: pb.ModelConfig, places: Sequence[Place], name: str) -> Iterator[Repair]:
    for place in [(), *places]:
        message = _get(proto, place)
        field = message.DESCRIPTOR.fields_by_name.get(name) if isinstance(message, Message) else None
        if field is None or getattr(message, name):
            continue
        if field.cpp_type == field.CPPTYPE_STRING:
            yield {(*place, name): _NAME}
        elif field.message_type is None:
            number = _LARGE.get(name, _NUMBER)
            yield {(*place, name): [number] if field.is_repeated else number}


def _values(proto: pb.ModelConfig, place: Place) -> Iterator[Any]:
    """What to put there: something that can be, or else nothing."""
    value = _get(proto, place)
    if isinstance(value, str):
        yield _NAME
    elif isinstance(value, int) and not isinstance(value, bool):
        yield _LARGE.get(str(place[-1]), _NUMBER)
    yield None


def _together(places: Sequence[Place]) -> Iterator[Repair]:
    """The same field of several elements: what is wrong with each of them is told in the same words."""
    kinds: dict[Place, list[Place]] = {}
    for place in places:
        kinds.setdefault(tuple("" if isinstance(step, int) else step for step in place), []).append(place)
    yield from (dict.fromkeys(same) for same in kinds.values() if len(same) > 1)


def _places(message: Message, at: Place) -> Iterator[Place]:
    """All that is set, what is within something before it."""
    for field, value in message.ListFields():
        here = (*at, field.name)
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        steps: Iterable[Any] = sorted(value, key=str) if is_map else range(len(value)) if field.is_repeated else ()
        for step in steps:
            # Of a parameter, the key says what its value can be.
            if isinstance(value[step], Message) and field.name != "parameters":
                yield from _places(value[step], (*here, step))
            yield (*here, step)
        if isinstance(value, Message):
            yield from _places(value, here)
        yield here


def _get(proto: Message, place: Place) -> Any:
    found: Any = proto
    for step in place:
        found = getattr(found, step) if isinstance(found, Message) else found[step]
    return found


def _put(proto: Message, place: Place, value: Any) -> None:
    *way, last = place
    holder = _get(proto, tuple(way))
    if not isinstance(holder, Message):
        if value is None:
            del holder[last]
        else:
            holder[last] = value
    elif value is None:
        holder.ClearField(last)
    elif isinstance(value, list):
        getattr(holder, last).extend(value)
    else:
        setattr(holder, last, value)


def _depth(place: Place) -> tuple[int, Any]:
    return len(place), place[-1] if isinstance(place[-1], int) else 0
