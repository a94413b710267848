"""``pb_utils.ModelConfig``: a configuration that a model's own code completes."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from preheat.backend import Dimension, PartialConfig, TensorSpec
from preheat_backends.python.datatypes import DATATYPES
from preheat_backends.python.errors import unsupported

# What a model may decide in auto_complete_config.
_OPEN = ("max_batch_size", "input", "output", "dynamic_batching")


class ModelConfig:
    """What auto_complete_config receives, adds to and returns.

    As in Triton it cannot contradict the file: every method raises ValueError where the two disagree.
    """

    def __init__(self, declared: Mapping[str, Any]) -> None:
        self._declared = declared
        self._config: dict[str, Any] = deepcopy(dict(declared))

    def as_dict(self) -> dict[str, Any]:
        """The configuration as it is now, in the form of ``args["model_config"]``. To be read only."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set the largest batch; 0 for a model without a batch axis. The file's may be smaller, and then counts."""
        if type(max_batch_size) is not int or max_batch_size < 0:
            raise ValueError(f"max_batch_size: {max_batch_size!r}: must be 0 (no batch axis) or at least 1")
        if self._declared["max_batch_size"] > max_batch_size:
            raise ValueError(
                f"max_batch_size: {max_batch_size}: the configuration says {self._declared['max_batch_size']}"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Have requests joined into batches, with the server's defaults unless the file has its own."""
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Do nothing, since there is one policy. Raises Unsupported if it is to be another."""
        for key in transaction_policy_dict:
            if key != "decoupled":
                raise ValueError(f"model_transaction_policy: {key!r}: must be 'decoupled'")
        if transaction_policy_dict.get("decoupled"):
            raise unsupported("decoupled models (model_transaction_policy); every request gets exactly one response")

    def add_input(self, input: Mapping[str, Any]) -> None:  # noqa: A002 - Triton's signature
        """Add an input: ``name``, ``data_type`` such as "TYPE_FP32", ``dims``, and ``optional`` if it is."""
        self._add("input", dict(input), allowed=("name", "data_type", "dims", "optional"))

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Add an output: ``name``, ``data_type`` and ``dims``."""
        self._add("output", dict(output), allowed=("name", "data_type", "dims"))

    def _add(self, kind: str, tensor: dict[str, Any], *, allowed: tuple[str, ...]) -> None:
        where = f"{kind} '{tensor.get('name', '')}'"
        for key in tensor:
            if key not in allowed:
                raise ValueError(f"{where}: {key!r}: must be one of {', '.join(allowed)}")
        _read_tensor(kind, tensor)
        tensor["dims"] = list(tensor["dims"])
        known = next((each for each in self._config[kind] if each["name"] == tensor["name"]), None)
        if known is None:
            self._config[kind].append(tensor)
            return
        for key, value in tensor.items():
            if known.get(key, value) != value:
                raise ValueError(f"{where}: {key}: {value}: the configuration says {known[key]}")

    def read(self) -> PartialConfig:
        """What the model decided, as the server takes it. Raises ValueError for what it cannot decide."""
        self._check_changes()
        max_batch_size = self._config["max_batch_size"]
        dynamic_batching = "dynamic_batching" in self._config and "dynamic_batching" not in self._declared
        if dynamic_batching and max_batch_size < 1:
            raise ValueError("dynamic_batching: needs max_batch_size of at least 1")
        return PartialConfig(
            inputs=self._read_added("input"),
            outputs=self._read_added("output"),
            max_batch_size=max_batch_size,
            dynamic_batching=dynamic_batching,
        )

    def _check_changes(self) -> None:
        """Refuse what was written into :meth:`as_dict` past the methods, rather than drop it."""
        for key in self._config.keys() | self._declared.keys():
            if key not in _OPEN and self._config.get(key) != self._declared.get(key):
                raise ValueError(f"{key}: cannot be set by a model, which may set {', '.join(_OPEN)}")
        if self._config.get("dynamic_batching", {}) != self._declared.get("dynamic_batching", {}):
            raise ValueError("dynamic_batching: its fields cannot be set by a model; write them into config.pbtxt")
        for kind in ("input", "output"):
            if self._config[kind][: len(self._declared[kind])] != list(self._declared[kind]):
                raise ValueError(f"{kind}: a model cannot change what the configuration declares")

    def _read_added(self, kind: str) -> tuple[TensorSpec, ...]:
        """The tensors that the model declares because the file declares none.

        Those in the file were compared when they were added, and stay the file's.
        """
        declared = self._declared[kind]
        added = self._config[kind][len(declared) :]
        if declared and added:
            names = ", ".join(f"'{each.get('name')}'" for each in added)
            raise ValueError(f"{kind} {names}: not in the configuration, which must declare every {kind} or none")
        largest = self._config["max_batch_size"]
        batch = (Dimension(minimum=1, maximum=largest),) if largest else ()
        return tuple(_read_tensor(kind, each, batch) for each in added)


def _read_tensor(kind: str, tensor: Mapping[str, Any], batch: tuple[Dimension, ...] = ()) -> TensorSpec:
    """A tensor in the configuration's form, as a specification of the whole shape. Raises ValueError."""
    name, datatype, dims = tensor.get("name"), tensor.get("data_type"), tensor.get("dims")
    where = f"{kind} '{name}'"
    if not isinstance(name, str) or not name:
        raise ValueError(f"{kind}: name: {name!r}: must be a text that is not empty")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ValueError(f"{where}: data_type: {datatype!r}: must be one of {', '.join(DATATYPES)}")
    if not isinstance(dims, list | tuple) or not dims or not all(map(_is_size, dims)):
        raise ValueError(f"{where}: dims: {dims}: must be sizes of at least 1, or -1 for one that varies")
    # As for tensors that the file declares: what a model takes is not empty, what it gives may be.
    variable = Dimension(minimum=1 if kind == "input" else 0)
    shape = tuple(variable if size == -1 else Dimension.fixed(size) for size in dims)
    return TensorSpec(name, DATATYPES[datatype], batch + shape, optional=bool(tensor.get("optional")))


def _is_size(size: object) -> bool:
    return type(size) is int and (size == -1 or size > 0)
