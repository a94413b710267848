"""Artifacts: built once a session, because exporting is slow, and copied for each test, because tests break them."""

import io
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.backends.cases import CASES, Case, LinearModule, save_linear_graph, save_linear_program, save_linear_python

from preheat.compilations import Compilation, recording
from preheat_backends.artifacts import Kind


@pytest.fixture(scope="session")
def built_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each case's id, a folder with its artifact in it."""
    folders = {}
    for case in CASES:
        folders[case.id] = tmp_path_factory.mktemp(case.id)
        case.build(folders[case.id])
    return folders


@pytest.fixture
def build(built_artifacts: dict[str, Path], tmp_path: Path) -> Callable[[Case], Path]:
    """Put a case's artifact into a new model folder, as version 1, and return that folder."""

    def build_model(case: Case) -> Path:
        shutil.copytree(built_artifacts[case.id], tmp_path / "m" / "1")
        return tmp_path / "m"

    return build_model


@pytest.fixture(scope="session")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """For each kind of artifact one that is really of it, as far as this machine can make it."""
    folder = tmp_path_factory.mktemp("specimens")
    save_linear_program(folder)
    save_linear_graph(folder)
    save_linear_python(folder)
    contents = {
        Kind.EXPORTED_PROGRAM: (folder / "model.pt2").read_bytes(),
        Kind.SAFETENSORS: (folder / "model.safetensors").read_bytes(),
        Kind.ONNX: (folder / "model.onnx").read_bytes(),
        Kind.TEXT: (folder / "model.py").read_bytes(),
        **_torch_archives(),
        **_handmade(),
    }
    contents[Kind.ZIP_CUT_SHORT] = contents[Kind.CHECKPOINT][:-200]
    contents[Kind.ONNX_CUT_SHORT] = contents[Kind.ONNX][:-20]
    contents[Kind.SAFETENSORS_CUT_SHORT] = contents[Kind.SAFETENSORS][:40]
    paths = {kind: folder / kind.name for kind in contents}
    for kind, path in paths.items():
        path.write_bytes(contents[kind])
    paths[Kind.DIRECTORY] = folder / "directory"
    paths[Kind.DIRECTORY].mkdir()
    return paths


def _torch_archives() -> dict[Kind, bytes]:
    checkpoint, script = io.BytesIO(), io.BytesIO()
    torch.save(LinearModule().state_dict(), checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is on its way out, its files are not
        traced = torch.jit.trace(LinearModule(), torch.zeros(2, 4))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, script)
    return {Kind.CHECKPOINT: checkpoint.getvalue(), Kind.TORCHSCRIPT: script.getvalue()}


def _handmade() -> dict[Kind, bytes]:
    package, arrays = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        # The members by which an AOTInductor package is known; compiling one takes most of a minute.
        archive.writestr("model/data/aotinductor/model/cabc.wrapper.so", b"\x7fELF")
        archive.writestr("model/archive_format", b"pt2")
    np.savez(arrays, x=np.zeros(3))
    return {
        Kind.AOTINDUCTOR_PACKAGE: package.getvalue(),
        Kind.ZIP: arrays.getvalue(),
        Kind.PICKLE: pickle.dumps({"x": 1}),
        Kind.TENSORRT_PLAN: b"ftrt" + bytes(60),
        Kind.TENSORRT_RTX_PLAN: b"vtrt" + bytes(60),
        Kind.GIT_LFS_POINTER: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        Kind.OPENVINO_IR: b'<?xml version="1.0"?>\n<net name="m" version="11">\n\t<layers />\n</net>\n',
        Kind.EMPTY: b"",
        Kind.UNKNOWN: bytes(range(255, 0, -1)),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose version 1 is still empty."""
    (tmp_path / "1").mkdir()
    return tmp_path


@pytest.fixture
def stated() -> Iterator[list[Compilation]]:
    """What this thread states to have compiled."""
    found: list[Compilation] = []
    with recording(found.append):
        yield found
