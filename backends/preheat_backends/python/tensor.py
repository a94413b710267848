"""``pb_utils.Tensor``: an input or output as a model's code holds it."""

import sys
from typing import Any, Self

import numpy as np

from preheat.tensors import Array, DataType
from preheat_backends.python.datatypes import numpy_to_triton_type
from preheat_backends.python.errors import TritonModelException, require

# DLPack's number for memory of the host.
_HOST = 1


class Tensor:
    """A name and an array. Belongs to whoever made it: nothing here is shared between requests.

    An output views the array it is made of. An input belongs to the request's message, which nobody may write to; a
    model may write to what it was given, so it is given a copy, made when the model first asks.
    """

    __slots__ = ("_array", "_borrowed", "_name")

    def __init__(self, name: str, array: Array) -> None:
        require(name, str, "Tensor: name")
        require(array, np.ndarray, "Tensor: the array (Tensor.from_dlpack takes other libraries' tensors)")
        if not name:
            raise TritonModelException("a tensor's name cannot be empty")
        if numpy_to_triton_type(array.dtype) is None:
            raise TritonModelException(f"tensor '{name}': numpy's {array.dtype} is no datatype of the protocol")
        self._name = name
        self._array: Array = np.asarray(array, order="C")
        self._borrowed = False

    @classmethod
    def received(cls, name: str, array: Array) -> Self:
        """An input, whose array is not the model's to write to."""
        tensor = cls(name, array)
        tensor._borrowed = True
        return tensor

    @staticmethod
    def from_dlpack(name: str, tensor: object) -> "Tensor":
        """A tensor that views the memory of another library's, or a copy of it if that is on a GPU.

        ``tensor`` has ``__dlpack__`` or is a capsule of it. Raises TritonModelException if it is not contiguous or not
        of a datatype of the protocol.
        """
        array = _to_host(name, tensor)
        if not array.flags.c_contiguous:
            raise TritonModelException(f"tensor '{name}': DLPack tensors must be contiguous, in C order")
        return Tensor(name, array)

    def name(self) -> str:
        """The tensor's name."""
        return self._name

    def as_numpy(self) -> Array:
        """The tensor's array, the same at each call. BYTES inputs are arrays of objects that are bytes."""
        if self._borrowed:
            self._array = self._array.copy()
            self._borrowed = False
        return self._array

    def triton_dtype(self) -> int | None:
        """Triton's number for the datatype."""
        return numpy_to_triton_type(self._array.dtype)

    def shape(self) -> list[int]:
        """The sizes of the axes."""
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        """Whether the tensor is in host memory. Here every tensor is."""
        return True

    def to_dlpack(self) -> object:
        """A capsule that views the tensor's memory."""
        return self.__dlpack__()

    def __dlpack__(self, stream: object = None) -> object:
        # Host memory has no streams, but what it is asked for may name one.
        del stream
        try:
            return self.as_numpy().__dlpack__()
        except (BufferError, RuntimeError, TypeError) as exc:
            datatype = DataType.of(self._array.dtype).value
            raise TritonModelException(f"tensor '{self._name}': {datatype} has no DLPack here; use as_numpy()") from exc

    def __dlpack_device__(self) -> tuple[int, int]:
        return _HOST, 0


class _Capsule:
    """A bare capsule in the form that numpy takes. Where its memory is, numpy reads in the capsule itself."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _HOST, 0


def _to_host(name: str, tensor: Any) -> Array:
    """The array of a DLPack tensor: through numpy, or what numpy cannot hold (BF16, a GPU's) through torch."""
    is_capsule = type(tensor).__name__ == "PyCapsule"
    if not is_capsule and not hasattr(tensor, "__dlpack__"):
        raise TypeError(f"tensor '{name}': {type(tensor).__name__} has no __dlpack__ and is no DLPack capsule")
    exporter: Any = _Capsule(tensor) if is_capsule else tensor
    try:
        return np.from_dlpack(exporter)
    except Exception as exc:  # every library has its own for what numpy cannot take
        torch = sys.modules.get("torch")
        if torch is None:
            raise TritonModelException(f"tensor '{name}': {exc}") from exc
    return _through_torch(torch.from_dlpack(tensor))


def _through_torch(tensor: Any) -> Array:
    # Only where torch is loaded: this backend does without it.
    from preheat_backends.torch_tensors import to_numpy

    return to_numpy(tensor, copy=False)
