"""AOTInductor packages: served as they say they are, and refused, before their code is loaded, where they are not.

Packages are compiled once, by our tool and by torch's own means, and then edited: as zip archives, which they are.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.aot_packages import LOOKUP_CONFIG, WORDS, rewrite, save_own_model
from tests.backends.cases import (
    MAX_BATCH,
    PAIR,
    SEQUENCE,
    make_inputs,
    make_source,
    opened,
    pair_reference,
    save_foreign_package,
    save_linear_program,
)

from preheat.backend import Dimension, Model, Signature, TensorSpec
from preheat.errors import BackendMissing, ExecutionFailed, InvalidArtifact, InvalidConfig, LoadFailed
from preheat.tensors import DataType
from preheat_backends.aot_inductor import AotInductorBackend, compatibility
from preheat_backends.aot_inductor.build import main
from preheat_backends.aot_inductor.generated import checked_inputs, ends_process, fixed_threads, most_threads
from preheat_backends.aot_inductor.package import read_package
from preheat_backends.hardware import Device, find_device

pytestmark = pytest.mark.compiles

_KEY = "preheat.package"
# Of this process's, and no package.
_OTHER_LIBRARY = Path(np.linalg._umath_linalg.__file__)
ANY = Dimension(minimum=1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A model's folder with our tool's package in version 1, and one with torch's."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("own", "foreign")}
    save_own_model(folders["own"])
    (folders["foreign"] / "1").mkdir()
    save_foreign_package(folders["foreign"] / "1")
    return folders


@pytest.fixture
def own(made: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy of the first."""
    return shutil.copytree(made["own"], tmp_path / "own")


@pytest.fixture
def foreign(made: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy of the second."""
    return shutil.copytree(made["foreign"], tmp_path / "foreign")


def load(folder: Path, signature: Signature = PAIR, **settings: Any) -> Model:
    """Do what the server's loader does."""
    source = make_source(folder, **settings)
    AotInductorBackend().complete(source)
    return AotInductorBackend().load(source, signature)


def package_in(folder: Path) -> Path:
    return folder / "1" / "model.pt2"


def assert_answers(model: Model, *, threads: int = 1) -> None:
    inputs = make_inputs(PAIR, 3)
    with opened(model, threads=threads) as session:
        for name, expected in pair_reference(inputs).items():
            np.testing.assert_allclose(session.infer(inputs)[name], expected, rtol=1e-6)


def described(**changes: Any) -> Callable[[Path], None]:
    """An edit of what our tool wrote."""

    def edit(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("wrapper_metadata.json"))
            told = json.loads(json.loads(archive.read(name))[_KEY])
        rewrite(path, metadata={_KEY: json.dumps({**told, **changes})})

    return edit


def told(**changes: str | None) -> Callable[[Path], None]:
    """An edit of what torch wrote."""
    return lambda path: rewrite(path, metadata=changes)


def member(ending: str, content: bytes | None) -> Callable[[Path], None]:
    """Other content for the members of that ending; None takes them out."""
    return lambda path: rewrite(path, edit=lambda name, old: content if name.endswith(ending) else old)


def added(name: str) -> Callable[[Path], None]:
    """One more member."""

    def edit(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"model/data/aotinductor/model/{name}", b"{}")

    return edit


# --- Mismatch: each with what must be in the text --------------------------------------------------------------------

MISMATCHES: Mapping[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "another device": (told(AOTI_DEVICE_KEY="cuda"), ("for cuda, and the model is on cpu", "KIND_GPU", "--device")),
    "another operating system": (told(AOTI_PLATFORM="win32"), ("operating system 'win32'", "this is 'linux'")),
    "another architecture": (told(AOTI_MACHINE="m68k"), ("of type 'm68k'", "build it on such a machine")),
    "vectors of no CPU": (told(AOTI_CPU_ISA="AVX2 AVX1024"), ("a CPU with avx1024", "build it on this", "--isa")),
    "instructions of no CPU": (described(instructions=["avx1024_x"]), ("a CPU with avx1024_x", "which this one")),
    "another torch": (described(torch="2.9.1+cu128"), ("torch 2.9.1+cu128", "this is torch 2.", "install torch 2.9")),
    "another version of the tool": (described(format=99), ("format 99", "build the package again")),
    "a description of nothing": (told(**{_KEY: "{}"}), ("cannot be read", "'format'")),
    "a description of another type": (described(inputs=7), ("its description", "cannot be read")),
    "no device": (told(AOTI_DEVICE_KEY=None), ("have no AOTI_DEVICE_KEY", "build it again")),
    "no architecture": (told(AOTI_MACHINE=None), ("have no AOTI_MACHINE",)),
    "no metadata": (member("_metadata.json", None), ("it has no metadata in it", "torch 2.7")),
    "metadata that is no JSON": (member("_metadata.json", b"{"), ("is damaged", "is no JSON")),
    "metadata of numbers": (member("_metadata.json", b'{"a": 1}'), ("does not map names to texts",)),
    "sources only": (member(".so", None), ("no compiled library in it", "package_cpp_only")),
    "weights elsewhere": (added("m_weights_config.json"), ("keeps its weights outside its library", "pickle_weights")),
    "a library that is none": (member(".so", b"\x7fELF" + bytes(2000)), ("torch cannot load it",)),
    "a library of other symbols": (member(".so", _OTHER_LIBRARY.read_bytes()), ("torch cannot load it",)),
}  # fmt: skip


@pytest.mark.parametrize("mismatch", MISMATCHES, ids=lambda name: name.replace(" ", "-"))
def test_a_package_for_something_else_is_refused_with_what_to_do(own: Path, mismatch: str) -> None:
    edit, fragments = MISMATCHES[mismatch]
    edit(package_in(own))
    with pytest.raises(InvalidArtifact) as refusal:
        load(own)
    assert str(package_in(own)) in str(refusal.value)
    for fragment in fragments:
        assert fragment in str(refusal.value)


def test_a_package_that_was_only_written_anew_is_served(own: Path) -> None:
    """So the edits above are what is refused."""
    rewrite(package_in(own))
    assert_answers(load(own))


def test_a_package_for_avx512_is_refused_on_a_cpu_without(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, it would end the process with an illegal instruction."""
    told(AOTI_CPU_ISA="AVX512 AVX512_VNNI AMX_TILE")(package_in(own))
    flags = frozenset(flag for flag in find_device("cpu").instructions if not flag.startswith(("avx512", "amx")))
    monkeypatch.setattr(compatibility, "find_device", lambda _: Device("cpu", "An older CPU", instructions=flags))
    with pytest.raises(InvalidArtifact, match=r"a CPU with amx_bf16, .*avx512f.* \(AVX512 .*this one \(An older CPU\)"):
        load(own)


@pytest.mark.parametrize(("capability", "fits"), [("90", True), ("80", False), (None, False)])
def test_a_package_for_other_gpus_is_refused(
    own: Path, monkeypatch: pytest.MonkeyPatch, capability: str | None, fits: bool
) -> None:
    told(AOTI_DEVICE_KEY="cuda", AOTI_COMPUTE_CAPABILITY=capability)(package_in(own))
    source = make_source(own, device="cuda:0")
    devices = {"cpu": find_device("cpu"), "cuda:0": Device("cuda:0", "A GPU", capability=(9, 0))}
    monkeypatch.setattr(compatibility, "find_device", devices.__getitem__)
    package = read_package(source, package_in(own), "model")
    if fits:
        compatibility.check_compatible(source, package, None)
        return
    with pytest.raises(
        InvalidArtifact, match=r"of compute capability 80, and this one \(A GPU\) has 90|no AOTI_COMPUTE"
    ):
        compatibility.check_compatible(source, package, None)


def test_a_package_for_a_gpu_that_is_not_there_is_refused(own: Path) -> None:
    told(AOTI_DEVICE_KEY="cuda")(package_in(own))
    with pytest.raises(BackendMissing, match="m asks for cuda:7"):
        load(own, device="cuda:7")


# --- Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 0.99999])
def test_a_package_that_is_cut_short_is_refused(own: Path, share: float) -> None:
    content = package_in(own).read_bytes()
    package_in(own).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        InvalidArtifact, match=r"model\.pt2 is (an empty|a zip archive that is cut short|a file of no kind)"
    ):
        load(own)


def test_a_flipped_bit_is_refused_or_does_no_harm(own: Path) -> None:
    """All over the archive: in its directory, its headers, its sources, and most of all in its machine code."""
    content = package_in(own).read_bytes()
    dice = np.random.default_rng(0)
    refused = 0
    for position in [*dice.integers(len(content), size=25), *dice.integers(len(content) - 1500, len(content), size=10)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << dice.integers(8)
        package_in(own).write_bytes(damaged)
        try:
            load(own).close()
        except LoadFailed as refusal:
            assert "model.pt2" in str(refusal)  # noqa: PT017 - either is right
            refused += 1
    assert refused >= 20


def test_an_exported_program_is_told_from_a_package(own: Path) -> None:
    save_linear_program(own / "1")
    with pytest.raises(InvalidArtifact, match=r"is a torch.export program; the backend 'aot_inductor' takes .*\.build"):
        load(own)


# --- What is declared ------------------------------------------------------------------------------------------------


def changed(signature: Signature, index: int = 0, **changes: Any) -> Signature:
    inputs = list(signature.inputs)
    inputs[index] = dataclasses.replace(inputs[index], **changes)
    return dataclasses.replace(signature, inputs=tuple(inputs))


_X = TensorSpec("x", DataType.FP32, (SEQUENCE,))
_LOOSE = changed(
    changed(PAIR, 0, shape=(Dimension(minimum=1, maximum=64),)), 1, shape=(Dimension(minimum=1, maximum=64),)
)
DECLARED: Mapping[str, tuple[Signature, str]] = {
    "datatype": (changed(PAIR, datatype=DataType.FP64), r"input 'values': FP64; the artifact in .* has 'values' FP32"),
    "datatype by name": (changed(PAIR, 1, datatype=DataType.INT32), r"input 'mask': INT32; the artifact .* INT64"),
    "rank": (changed(PAIR, shape=(SEQUENCE, SEQUENCE)), r"input 'values': \[any\(1\.\.8\), sequence.*; the artifact"),
    "no batch axis": (changed(PAIR, shape=()), r"input 'values': \[any\(1\.\.8\)\]; the artifact in"),
    "batches": (dataclasses.replace(PAIR, max_batch_size=9), r"input 'values': batches of 1 to 9; the artifact in"),
    "longer": (
        changed(changed(PAIR, shape=(Dimension("sequence", 1, 65),)), 1, shape=(Dimension("sequence", 1, 65),)),
        r"input 'values': sequence\(1\.\.65\): the package in .* takes s\d+\(0\.\.64\); narrow it by .*dimension",
    ),
    "not tied": (_LOOSE, r"input 'mask': .* as large as .* of 'values', and reads beyond it .*; give both axes"),
    "an input too few": (dataclasses.replace(PAIR, inputs=PAIR.inputs[1:]), r"'mask' are declared; the package .* 2 "),
    "an input too many": (dataclasses.replace(PAIR, inputs=(*PAIR.inputs, _X)), r"'x' are declared; the package .* 2 "),
    "no such name": (changed(PAIR, 1, name="x"), r"'values', 'x' are declared; .* \(1 by position, 'mask'\); declare"),
    "optional": (changed(PAIR, optional=True), r"input 'values': cannot be optional"),
    "no such output": (
        dataclasses.replace(PAIR, outputs=(*PAIR.outputs, _X)),
        r"output 'x': no such output; the package in .* has 2: 'masked', 'total'",
    ),
    "text": (changed(PAIR, datatype=DataType.BYTES), r"tensor 'values': BYTES: torch has no such tensors"),
}  # fmt: skip


@pytest.mark.parametrize("declared", DECLARED, ids=lambda name: name.replace(" ", "-"))
def test_a_signature_that_torchs_package_cannot_have_is_refused(foreign: Path, declared: str) -> None:
    """The package does not name its tensors; what it does say is in the source that travels in it."""
    signature, message = DECLARED[declared]
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: .*{message}"):
        load(foreign, signature)


@pytest.mark.parametrize(
    ("parameters", "settings", "message"),
    [
        ({"model_name": "decoder"}, {}, r"model_name: 'decoder': the package has 'model'"),
        ({"run_single_threaded": "true"}, {"instances": 2}, r"run_single_threaded: 'true': the model has 2 instances"),
        ({"accept_aborts": "perhaps"}, {}, r"accept_aborts: 'perhaps': must be true or false"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(
    own: Path, parameters: dict[str, str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: parameters: {message}"):
        load(own, parameters=parameters, **settings)


def test_a_package_without_its_source_is_refused_if_nothing_describes_it(own: Path, foreign: Path) -> None:
    for folder in (own, foreign):
        member(".cpp", None)(package_in(folder))
    assert_answers(load(own))
    with pytest.raises(InvalidArtifact, match=r"does not say how it is called: its source wrapper\.cpp is not in it"):
        load(foreign)


def test_what_the_source_tells_of_inputs_is_read(foreign: Path) -> None:
    package = read_package(make_source(foreign), package_in(foreign), "model")
    values, mask = checked_inputs(package.wrapper) or ()
    assert (values.datatype, mask.datatype) == (DataType.FP32, DataType.INT64)
    assert values.shape is not None
    assert [(axis.minimum, axis.maximum) for axis in values.shape] == [(0, 8), (0, 64)]
    assert values.shape == mask.shape
    assert None not in {axis.name for axis in values.shape}


def test_a_package_that_does_not_say_which_sizes_are_equal_is_refused(foreign: Path) -> None:
    def without_asserts(name: str, content: bytes) -> bytes:
        lines = content.splitlines(keepends=True) if name.endswith("wrapper.cpp") else []
        return b"".join(line for line in lines if b"assert_size_stride" not in line) or content

    rewrite(package_in(foreign), edit=without_asserts)
    with pytest.raises(InvalidArtifact, match="does not say which of its sizes must be equal"):
        load(foreign)


def test_torchs_own_package_tells_nothing_that_could_be_completed(foreign: Path) -> None:
    partial = AotInductorBackend().complete(make_source(foreign))
    assert (partial.inputs, partial.outputs) == ((), ())


# --- Running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{}, {"run_single_threaded": "true"}, {"model_name": "model"}], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_it_answers_with_any_threads(own: Path, parameters: dict[str, str], threads: int) -> None:
    assert_answers(load(own, parameters=parameters, threads=threads), threads=threads)


@pytest.mark.parametrize("index", [WORDS, -WORDS - 1, 2**62])
def test_an_index_out_of_range_is_an_error_of_its_request(own: Path, index: int) -> None:
    """Thrown on several threads, it would end the process; so our tool makes such kernels for one."""
    inputs = make_inputs(PAIR, MAX_BATCH, sequence=64)
    bad = {**inputs, "mask": np.full_like(inputs["mask"], index)}
    with opened(load(own, threads=2), threads=2) as session:
        for _ in range(3):
            with pytest.raises(ExecutionFailed, match=r"^aot_inductor: RuntimeError: index out of bounds"):
                session.infer(bad)
        expected = pair_reference(inputs)["masked"]
        np.testing.assert_allclose(session.infer(inputs)["masked"], expected, rtol=1e-6)


def test_its_own_checks_of_inputs_are_on(foreign: Path) -> None:
    """The server's come before; these are for whoever gets past them."""
    assert os.environ["AOTI_RUNTIME_CHECK_INPUTS"] == "1"
    good = make_inputs(PAIR, 2)
    with opened(load(foreign)) as session:
        for name, array in (("mask", good["mask"][:, :3]), ("values", good["values"].astype(np.float64))):
            with pytest.raises(ExecutionFailed, match=r"aot_inductor: RuntimeError: (expected size|input_handles)"):
                session.infer({**good, name: np.ascontiguousarray(array)})


def test_a_package_whose_kernels_end_the_process_is_refused_unless_that_is_accepted(own: Path) -> None:
    rewrite(
        package_in(own),
        edit=lambda name, old: b"#pragma omp parallel\n" + old if name.endswith("kernel.cpp") else old,
    )
    with pytest.raises(InvalidArtifact, match=r"end the whole process .* index out of range.* accept_aborts: true"):
        load(own)
    assert_answers(load(own, parameters={"accept_aborts": "true"}))


def test_kernels_with_room_for_fewer_threads_are_refused_more(own: Path) -> None:
    source = b"#pragma omp parallel\nfloat tmp_acc0_arr[2];\ntmp_acc0_arr[tid] = 0;"
    member("kernel.cpp", source)(package_in(own))
    with pytest.raises(InvalidConfig, match=r"preheat\.threads: 3: .* room for 2 threads, .* set preheat\.threads: 2"):
        load(own, threads=3)
    assert_answers(load(own, threads=2))


def test_kernels_that_have_their_own_number_of_threads_are_said_to(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    member("kernel.cpp", b"#pragma omp parallel num_threads(56)\n")(package_in(own))
    load(own).close()
    assert "run on 56 threads, whatever is asked for; the model was given 1" in caplog.text


@pytest.mark.parametrize(
    ("kernels", "ends", "most", "fixed"),
    [
        ("", False, None, None),
        ("AOTI_TORCH_CHECK(a, b);", False, None, None),
        ("#pragma omp parallel\n{ AOTI_TORCH_CHECK(a, b); }", True, None, None),
        ("#pragma omp parallel num_threads(4)\n{ TORCH_CHECK(a, b); float x_arr[4]; x_arr[tid] = 0; }", True, None, 4),
        ("float x_arr[4];\n#pragma omp parallel\n{ x_arr[tid] = 0; }", False, 4, None),
        ("auto x_arr = std::make_unique<float[]>(4);\n#pragma omp parallel\n{ x_arr[tid] = 0; }", False, 4, None),
        ("float x_arr[max_threads];\n#pragma omp parallel\n{ x_arr[tid] = 0; }", False, None, None),
    ],
)  # fmt: skip
def test_generated_kernels_are_read(kernels: str, ends: bool, most: int | None, fixed: int | None) -> None:
    assert (ends_process(kernels), most_threads(kernels), fixed_threads(kernels)) == (ends, most, fixed)


def test_nothing_is_left_behind_in_the_folder_for_temporary_files(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with opened(load(own)) as session:
        session.infer(make_inputs(PAIR, 1))
        assert list((tmp_path / "temporary").iterdir()) == []


# --- The build tool --------------------------------------------------------------------------------------------------


def test_the_tool_writes_a_model_that_describes_itself(own: Path) -> None:
    config = (own / "config.pbtxt").read_text()
    assert config.startswith("# Built of ")
    assert 'name: "package"\nbackend: "aot_inductor"\nmax_batch_size: 8\n' in config
    assert 'key: "preheat.dimension.sequence"' in config
    partial = AotInductorBackend().complete(make_source(own))
    assert [spec.name for spec in partial.outputs] == ["masked", "total"]
    batch, sequence = Dimension("batch axis", 1, 8), SEQUENCE
    assert [spec.shape for spec in partial.inputs] == [(batch, sequence)] * 2
    assert [spec.shape for spec in partial.outputs] == [(batch, sequence), (batch, Dimension.fixed(1))]
    said = (own / "said.txt").read_text()
    assert "compiling for cpu" in said
    assert "batch axis 8, sequence 64: 'masked' differs from the network's by" in said


@pytest.mark.parametrize(
    ("config", "source", "words", "message"),
    [
        (LOOKUP_CONFIG.replace("eager", "double"), None, [], "'double': packages are built from models for"),
        (LOOKUP_CONFIG, "model = 1", [], "defines no build_model()"),
        (LOOKUP_CONFIG, None, ["--device", "cuda"], "--device cuda: torch"),
        (LOOKUP_CONFIG, None, ["--quantization", "pt2e_dynamic", "--no-freezing"], "slow without freezing"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, source: str | None, words: list[str], message: str
) -> None:
    eager, output = tmp_path / "eager", tmp_path / "package"
    (eager / "1").mkdir(parents=True)
    (eager / "config.pbtxt").write_text(config)
    (eager / "1" / "model.py").write_text(source or "import torch\ndef build_model(): return torch.nn.Identity()\n")
    assert main([str(eager), str(output), *words]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eager"]


CONVOLUTION = """
import torch

def build_model():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, kernel_size=1))
"""
CONVOLUTION_CONFIG = """
backend: "eager"
max_batch_size: 32
input { name: "input" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }
output { name: "features" data_type: TYPE_FP32 dims: [ 4, 8, 8 ] }
"""


def test_how_a_convolution_is_computed_bounds_no_batch(tmp_path: Path) -> None:
    """Torch looks at whether there are 16 rows. The tool has a process of its own: the module of its model stays."""
    eager = tmp_path / "eager"
    (eager / "1").mkdir(parents=True)
    (eager / "config.pbtxt").write_text(CONVOLUTION_CONFIG)
    (eager / "1" / "model.py").write_text(CONVOLUTION)
    command = [sys.executable, "-m", "preheat_backends.aot_inductor.build", str(eager), str(tmp_path / "package")]
    built = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert built.returncode == 0, built.stderr
    assert "batch axis 32: 'features' differs from the network's by" in built.stdout


def test_the_tool_writes_over_nothing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(own), str(own)]) == 1
    assert "exists; name another folder" in capsys.readouterr().err
