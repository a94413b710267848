"""Every problem of repositories and their models, where a server stops at the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preheat.errors import InvalidConfig
from preheat.repository.configuration import CONFIG_FILE, ModelConfiguration, read_configuration
from preheat.repository.mending import config_problems, parse_lines
from preheat.repository.scan import choose_versions, model_names, versions_on_disk


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, in words that name file and key; with which model and version, None: with no single one.

    ``note``: it cannot be looked at here, no more.
    """

    model: str | None
    version: int | None
    file: str
    problem: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model's folder, its versions, ascending, and what is wrong with it; ``configuration`` None if it has none."""

    folder: Path
    versions: tuple[int, ...]
    configuration: ModelConfiguration | None
    problems: tuple[Problem, ...]


def find_folders(repositories: Sequence[Path]) -> tuple[list[Path], list[Problem]]:
    """The folders of all models, by name; and repositories that are none, and names that are in several."""
    folders: list[Path] = []
    problems: list[Problem] = []
    for repository in repositories:
        try:
            folders += [repository / name for name in model_names([repository])]
        except InvalidConfig as exc:
            problems.append(Problem(None, None, str(repository), str(exc)))
    folders.sort(key=lambda folder: folder.name)
    for name in sorted({folder.name for folder in folders}):
        places = [str(folder) for folder in folders if folder.name == name]
        if len(places) > 1:
            text = f"model '{name}' appears in two or more repositories: {' and '.join(places)}; rename one"
            problems.append(Problem(name, None, places[1], text))
    return folders, problems


def check_model(folder: Path) -> CheckedModel:
    """What is wrong with the name, the configuration and the versions of the model in ``folder``. Opens no artifact."""
    file = folder / CONFIG_FILE
    problems: list[Problem] = []
    versions: list[int] = []
    configuration: ModelConfiguration | None = None
    try:
        versions = versions_on_disk(folder)
    except (InvalidConfig, OSError) as exc:
        problems.append(Problem(folder.name, None, str(folder), _readable(folder, exc)))
    found = config_problems(folder)
    problems += [Problem(folder.name, None, str(file if str(file) in text else folder), text) for text in found]
    try:
        if versions:
            choose_versions(parse_lines(file).proto.version_policy, versions, folder)
    except InvalidConfig as exc:
        problems.append(Problem(folder.name, None, str(file), str(exc)))
    except (OSError, UnicodeError):
        # Which config_problems has told.
        pass
    if not found:
        configuration = read_configuration(folder)
    return CheckedModel(folder, tuple(versions), configuration, tuple(problems))


def _readable(folder: Path, exc: Exception) -> str:
    return str(exc) if isinstance(exc, InvalidConfig) else f"{folder}: cannot be read: {exc}"
