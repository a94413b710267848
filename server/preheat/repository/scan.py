"""Finding models and versions on disk. Parses configurations and looks at names; opens no artifact."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preheat.errors import InvalidConfig, LoadFailed
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.configuration import ModelConfiguration, read_configuration

_VERSION = re.compile(r"[1-9][0-9]{0,17}")


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
                both = f"{found[folder.name].path} and {folder}"
                clash = InvalidConfig(f"model '{folder.name}' appears in two or more repositories: {both}; rename one")
                found[folder.name] = BrokenModel(folder, clash)
            else:
                found[folder.name] = read_model(folder)
    return dict(sorted(found.items()))


def read_model(folder: Path) -> ModelFolder | BrokenModel:
    """The model in ``folder``, or why it cannot be tried. Never raises."""
    try:
        configuration = read_configuration(folder)
        versions = choose_versions(configuration.proto.version_policy, versions_on_disk(folder), folder)
    except LoadFailed as exc:
        return BrokenModel(folder, exc)
    except (OSError, UnicodeError) as exc:
        return BrokenModel(folder, InvalidConfig(f"{folder}: cannot be read: {exc}"))
    return ModelFolder(folder, configuration, versions)


def versions_on_disk(folder: Path) -> list[int]:
    """The version numbers of ``folder``, ascending.

    Folders named with a whole number of at least 1, without leading zeros.
    """
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and _VERSION.fullmatch(path.name))


def choose_versions(policy: pb.ModelVersionPolicy, available: Sequence[int], folder: Path) -> tuple[int, ...]:
    """The versions that ``policy`` wants out of those ``available`` (ascending).

    Raises InvalidConfig if it leaves none.
    """
    if not available:
        raise InvalidConfig(f"{folder}: has no version folder; put the artifact into {folder / '1'}")
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


def _model_folders(repository: Path) -> list[Path]:
    """The folders of a repository; hidden ones and Python's caches are not models."""
    try:
        entries = sorted(repository.iterdir())
    except OSError as exc:
        raise InvalidConfig(f"model repository {repository}: {exc.strerror}; give a folder that holds models") from exc
    return [path for path in entries if path.is_dir() and not path.name.startswith(".") and path.name != "__pycache__"]
