"""Where a model's instances go: instance groups and the devices at hand, made into sessions per device. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from preheat.errors import InvalidConfig
from preheat.repository.configuration import InstanceGroup, ModelConfiguration


@dataclass(frozen=True, slots=True)
class Placement:
    """``instances`` sessions of one model, loaded once, on ``device``."""

    device: str
    instances: int


def place(configuration: ModelConfiguration, devices: Sequence[str]) -> list[Placement]:
    """Place the instance groups on ``devices``, the backend's, such as "cpu" or "cuda:0".

    KIND_AUTO and KIND_MODEL take the first GPU the backend found, else the CPU. Raises InvalidConfig naming what is
    there when a group asks for a device that is not.
    """
    counts: dict[str, int] = {}
    for group in configuration.instance_groups:
        for device in _devices_of(group, configuration, devices):
            counts[device] = counts.get(device, 0) + group.count
    return [Placement(device, count) for device, count in counts.items()]


def _devices_of(group: InstanceGroup, configuration: ModelConfiguration, devices: Sequence[str]) -> list[str]:
    gpus = [device for device in devices if device.startswith("cuda:")]
    if group.kind == "KIND_CPU" or (group.kind != "KIND_GPU" and not group.gpus and not gpus):
        return [_present("cpu", group, configuration, devices)]
    if group.gpus:
        return [_present(f"cuda:{gpu}", group, configuration, devices) for gpu in group.gpus]
    if group.kind == "KIND_GPU":
        # Triton: a GPU group that lists no GPUs has `count` instances on each.
        return gpus or [_present("cuda:0", group, configuration, devices)]
    return gpus[:1]


def _present(device: str, group: InstanceGroup, configuration: ModelConfiguration, devices: Sequence[str]) -> str:
    if device not in devices:
        raise InvalidConfig(
            f"{configuration.file}: instance_group: {group.kind} wants {device}; "
            f"backend '{configuration.backend}' found {', '.join(devices)} here"
        )
    return device
