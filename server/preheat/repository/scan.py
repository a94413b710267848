"""Finding models and versions on disk. Parses configurations and looks at names; opens no artifact."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preheat.errors import InvalidConfig, LoadFailed
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.configuration import CONFIG_FILE, ModelConfiguration, read_configuration
from preheat.repository.names import is_ignored, is_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model that can be tried: its configuration, and the versions its policy wants, ascending (at least one)."""

    path: Path
    configuration: ModelConfiguration
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """A folder that is meant to be a model but cannot be tried, and why."""

    path: Path
    reason: LoadFailed


def scan(repositories: Sequence[Path]) -> dict[str, ModelFolder | BrokenModel]:
    """Every model in ``repositories``, by name, sorted. Raises InvalidConfig if a repository is no readable folder."""
    found: dict[str, ModelFolder | BrokenModel] = {}
    for repository in repositories:
        for folder in _model_folders(repository):
            if folder.name in found:
                found[folder.name] = BrokenModel(folder, _clash(found[folder.name].path, folder))
            else:
                found[folder.name] = read_model(folder)
    return dict(sorted(found.items()))


def find_model(repositories: Sequence[Path], name: str) -> ModelFolder | BrokenModel | None:
    """The model called ``name``, None if there is none. A name is only ever compared, never made part of a path."""
    folders = [path for repository in repositories for path in _model_folders(repository) if path.name == name]
    if len(folders) > 1:
        return BrokenModel(folders[1], _clash(folders[0], folders[1]))
    return read_model(folders[0]) if folders else None


def model_names(repositories: Sequence[Path]) -> list[str]:
    """The names of all models, sorted, without reading any."""
    return sorted({path.name for repository in repositories for path in _model_folders(repository)})


def read_model(folder: Path) -> ModelFolder | BrokenModel:
    """The model in ``folder``, or why it cannot be tried. Never raises."""
    try:
        available = versions_on_disk(folder)
        configuration = read_configuration(folder)
        versions = choose_versions(configuration.proto.version_policy, available, folder)
    except LoadFailed as exc:
        return BrokenModel(folder, exc)
    except Exception as exc:
        if not isinstance(exc, OSError | UnicodeError):
            log.exception("reading %s failed", folder)
        return BrokenModel(folder, InvalidConfig(f"{folder}: cannot be read: {exc}"))
    return ModelFolder(folder, configuration, versions)


def versions_on_disk(folder: Path) -> list[int]:
    """The version numbers of ``folder``, ascending. Raises InvalidConfig if there are none."""
    versions = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and is_version(path.name))
    if not versions:
        raise InvalidConfig(f"{folder}: has no version folder; put the artifact into {folder / '1'}")
    return versions


def choose_versions(policy: pb.ModelVersionPolicy, available: Sequence[int], folder: Path) -> tuple[int, ...]:
    """The versions that ``policy`` wants out of those ``available`` (ascending).

    Raises InvalidConfig if it leaves none.
    """
    match policy.WhichOneof("policy_choice"):
        case "all":
            return tuple(available)
        case "specific":
            wanted = sorted(set(policy.specific.versions))
            if not wanted or not set(wanted) <= set(available):
                raise InvalidConfig(
                    f"{folder}: version_policy: specific: {wanted}: there are versions {', '.join(map(str, available))}"
                )
            return tuple(wanted)
        case _:
            return tuple(available[-(policy.latest.num_versions or 1) :])


def _clash(first: Path, second: Path) -> InvalidConfig:
    both = f"{first} and {second}"
    return InvalidConfig(f"model '{first.name}' appears in two or more repositories: {both}; rename one")


def _model_folders(repository: Path) -> list[Path]:
    """The folders of a repository; hidden ones and Python's caches are not models."""
    try:
        entries = sorted(repository.iterdir())
    except OSError as exc:
        raise InvalidConfig(f"model repository {repository}: {exc.strerror}; give a folder that holds models") from exc
    if repository / CONFIG_FILE in entries:
        raise InvalidConfig(
            f"model repository {repository}: has a {CONFIG_FILE}, so it is one model's folder; serve its parent, "
            f"{repository.resolve().parent}"
        )
    return [path for path in entries if path.is_dir() and not is_ignored(path.name)]
