"""What our build tool writes into a package: its signature, and what it needs of torch and of the CPU.

torch puts whatever texts it is given into the package's metadata, beside its own. Of a package that was made without
our tool there is no description.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preheat.backend import Dimension
from preheat.errors import InvalidArtifact
from preheat.tensors import DataType
from preheat_backends.signatures import ArtifactSignature, ArtifactTensor

_KEY = "preheat.package"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Description:
    """A package's own word. Inputs and outputs are in the order in which the package takes and gives them.

    ``instructions`` are those of the CPU that the compiler was free to use, as Linux names them. ``writes_inputs``:
    the network writes to tensors that it is given.
    """

    signature: ArtifactSignature
    torch: str
    instructions: frozenset[str]
    row_independent: bool = True
    writes_inputs: bool = False

    def as_metadata(self) -> dict[str, str]:
        """What goes into ``aot_inductor.metadata``."""
        described = {
            "format": _FORMAT,
            "torch": self.torch,
            "instructions": sorted(self.instructions),
            "row_independent": self.row_independent,
            "writes_inputs": self.writes_inputs,
            "inputs": [_write(tensor) for tensor in self.signature.inputs],
            "outputs": [_write(tensor) for tensor in self.signature.outputs],
        }
        return {_KEY: json.dumps(described)}


def read_description(metadata: Mapping[str, str], path: Path) -> Description | None:
    """The description in a package's ``metadata``; None for a package of others.

    Raises InvalidArtifact if it is of another format than this server reads.
    """
    if _KEY not in metadata:
        return None
    try:
        told: dict[str, Any] = json.loads(metadata[_KEY])
        if told["format"] != _FORMAT:
            raise InvalidArtifact(
                f"{path} was described by another version of the build tool (format {told['format']}, this server "
                f"reads {_FORMAT}); build the package again"
            )
        return _read(told)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InvalidArtifact(f"{path}: its description {_KEY!r} cannot be read: {type(exc).__name__}: {exc}") from exc


def _read(told: dict[str, Any]) -> Description:
    return Description(
        ArtifactSignature(tuple(map(_read_tensor, told["inputs"])), tuple(map(_read_tensor, told["outputs"]))),
        torch=str(told["torch"]),
        instructions=frozenset(map(str, told["instructions"])),
        row_independent=bool(told["row_independent"]),
        writes_inputs=bool(told["writes_inputs"]),
    )


def _write(tensor: ArtifactTensor) -> dict[str, object]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype.value,
        "shape": [[axis.name, axis.minimum, axis.maximum, axis.multiple_of] for axis in tensor.shape or ()],
    }


def _read_tensor(told: dict[str, Any]) -> ArtifactTensor:
    shape = tuple(
        Dimension(name, int(minimum), None if maximum is None else int(maximum), int(step))
        for name, minimum, maximum, step in told["shape"]
    )
    return ArtifactTensor(str(told["name"]), DataType(told["datatype"]), shape)
