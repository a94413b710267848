"""Two ways into a package's code: torch's own, and one that lets go of the interpreter's lock.

torch's holds the lock for as long as the network runs (torch 2.13): a run of 100 ms stops all other threads for so
long, those that answer other models' requests among them, and instances run one after the other. On a GPU that is
the time it takes to start kernels. On the CPU it is all of it; there the library is called by its C interface.
"""

import ctypes
import shutil
import tempfile
import zipfile
from _ctypes import dlclose
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch

from preheat_backends.aot_inductor.unloading import make_unloadable

_aoti: Any = torch._C._aoti
_new_capsule: Any = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_in_capsule: Any = ctypes.pythonapi.PyCapsule_GetPointer
_in_capsule.restype = ctypes.c_void_p
_in_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Runner(Protocol):
    """A network in memory. Several threads may run it, as many at once as it was made for; others wait."""

    def run(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run on tensors in the order of the call. Raises RuntimeError with what the package says."""

    def close(self) -> None:
        """Unload the code."""


class LoaderRunner:
    """torch's own way. It keeps what it unpacked, in the folder for temporary files, until it is closed."""

    def __init__(self, path: Path, model_name: str, *, single_threaded: bool, runners: int, device_index: int) -> None:
        # Not by torch._inductor.package.load_package, which loads every network in the package, asks a compiler what
        # the CPU can do, and hides why a library cannot be loaded.
        self._loader = _aoti.AOTIModelPackageLoader(str(path), model_name, single_threaded, runners, device_index)

    def run(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run, holding the interpreter's lock."""
        outputs: Sequence[torch.Tensor] = self._loader.boxed_run(list(tensors))
        return outputs

    def close(self) -> None:
        """Unload the library, and remove what was unpacked."""
        del self._loader


class LibraryRunner:
    """The library ``member`` of the package at ``path``, on the CPU, by its C interface, which torch keeps stable."""

    def __init__(self, path: Path, member: str, *, single_threaded: bool, runners: int) -> None:
        self._library = _open_library(path, member)
        self._container = ctypes.c_void_p()
        try:
            _on_a_thread_of_its_own(lambda: self._create(runners))
        except BaseException:
            self.close()
            raise
        name = "AOTInductorModelContainerRun" + ("SingleThreaded" if single_threaded else "")
        self._run = self._library[name]

    def _create(self, runners: int) -> None:
        library, container = self._library, self._container
        count = ctypes.c_size_t(runners)
        self._check(library.AOTInductorModelContainerCreateWithDevice(ctypes.byref(container), count, b"cpu", None))
        inputs, outputs = ctypes.c_size_t(), ctypes.c_size_t()
        self._check(library.AOTInductorModelContainerGetNumInputs(container, ctypes.byref(inputs)))
        self._check(library.AOTInductorModelContainerGetNumOutputs(container, ctypes.byref(outputs)))
        self._inputs, self._outputs = ctypes.c_void_p * inputs.value, ctypes.c_void_p * outputs.value
        self._counts = inputs, outputs

    def run(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run, and let other threads run meanwhile. The package takes over its handles of the inputs."""
        if len(tensors) != self._counts[0].value:
            raise RuntimeError(f"the package takes {self._counts[0].value} inputs, not {len(tensors)}")
        handles = _aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)
        inputs = self._inputs(*(_in_capsule(handle, None) for handle in handles))
        outputs = self._outputs()
        self._check(self._run(self._container, inputs, self._counts[0], outputs, self._counts[1], None, None))
        made: Sequence[torch.Tensor] = _aoti.alloc_tensors_by_stealing_from_void_ptrs(
            [_new_capsule(output, None, None) for output in outputs]
        )
        return made

    def close(self) -> None:
        """Free the weights and unload the library."""
        if self._container.value:
            _on_a_thread_of_its_own(lambda: self._library.AOTInductorModelContainerDelete(self._container))
            self._container = ctypes.c_void_p()
        dlclose(self._library._handle)

    def _check(self, failed: int) -> None:
        if failed:
            text = ctypes.c_char_p()
            if hasattr(self._library, "AOTInductorGetLastError"):
                self._library.AOTInductorGetLastError(ctypes.byref(text))
            raise RuntimeError(
                (text.value or b"").decode(errors="replace") or "the package failed and does not say why"
            )


def _on_a_thread_of_its_own(call: Callable[[], object]) -> None:
    """A library that keeps something by thread cannot be unloaded before the threads end that were in it."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(call).result()


def _open_library(path: Path, member: str) -> ctypes.CDLL:
    """Open a copy of the library, which is removed again: what is mapped of it stays.

    A copy of its own for each load, as it keeps what it has read of the environment.
    """
    with tempfile.TemporaryDirectory(prefix="preheat-") as folder:
        library = Path(folder) / "model.so"
        with zipfile.ZipFile(path) as archive, archive.open(member) as packed, library.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)
        make_unloadable(library)
        return ctypes.CDLL(str(library))
