"""What has to change for a model to be served as its folder is now. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from preheat.protocol import model_config_pb2 as pb
from preheat.repository.configuration import InstanceGroup, ModelConfiguration
from preheat.repository.scan import ModelFolder
from preheat.repository.stamps import FolderStamp, Stamp


@dataclass(frozen=True, slots=True)
class Source:
    """What a version is loaded from: two that are equal need no loading in between.

    ``configuration`` is the file's, in bytes, without what changes nothing about one version: which versions are
    wanted, and the ``instance_groups``, which may change while it serves.
    """

    folder: Path
    configuration: bytes
    instance_groups: tuple[InstanceGroup, ...]
    shared: Stamp
    files: Stamp


@dataclass(frozen=True, slots=True)
class Plan:
    """Versions to ``load``, and those to give another number of instances, ascending."""

    load: tuple[int, ...] = ()
    resize: tuple[int, ...] = ()


def source_of(folder: ModelFolder, version: int, stamp: FolderStamp | None) -> Source:
    """What ``version`` would be loaded from, its folder being as ``stamp`` says (None: gone)."""
    configuration = folder.configuration
    return Source(
        folder.path,
        _of_one_version(configuration),
        configuration.instance_groups,
        stamp.shared if stamp else (),
        stamp.versions.get(version, ()) if stamp else (),
    )


def plan(serving: Mapping[int, Source], wanted: Mapping[int, Source], failed: Mapping[int, Source]) -> Plan:
    """From what each version serves from, is wanted to, and what it was last tried from in vain.

    What has failed is not tried again as it was.
    """
    load, resize = [], []
    for version, source in sorted(wanted.items()):
        served = serving.get(version)
        if served == source or failed.get(version) == source:
            continue
        if served is not None and replace(served, instance_groups=source.instance_groups) == source:
            resize.append(version)
        else:
            load.append(version)
    return Plan(tuple(load), tuple(resize))


def _of_one_version(configuration: ModelConfiguration) -> bytes:
    proto = pb.ModelConfig()
    proto.CopyFrom(configuration.proto)
    proto.ClearField("version_policy")
    proto.ClearField("instance_group")
    # The folder's, whether it is said or not.
    proto.ClearField("name")
    return proto.SerializeToString(deterministic=True)
