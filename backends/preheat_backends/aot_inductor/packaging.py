"""From an exported program to a package that a server can trust: safe kernels, and a description of itself."""

import enum
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._inductor
import torch._inductor.config
from torch.export import ExportedProgram

from preheat.backend import ModelSource
from preheat.errors import InvalidArtifact
from preheat_backends.aot_inductor.compatibility import compilers_choice
from preheat_backends.aot_inductor.description import Description
from preheat_backends.aot_inductor.generated import ends_process
from preheat_backends.aot_inductor.package import read_package
from preheat_backends.hardware import find_device
from preheat_backends.signatures import ArtifactSignature
from preheat_backends.torch_compile.options import require_cpp_compiler
from preheat_backends.torch_programs.program import first_line

_inductor: Any = torch._inductor.config  # to the type checker, it has no patch()


class InstructionSet(enum.Enum):
    """What CPUs the code is for: this very one, or all that have AVX2 or AVX-512."""

    NATIVE = "native"
    AVX2 = "avx2"
    AVX512 = "avx512"


_VECTOR_BITS = {InstructionSet.AVX2: 256, InstructionSet.AVX512: 512}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to compile. ``options`` are more of inductor's, such as quantization needs."""

    instruction_set: InstructionSet = InstructionSet.NATIVE
    freezing: bool = True
    row_independent: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


def compile_package(
    program: ExportedProgram,
    path: Path,
    *,
    signature: ArtifactSignature,
    source: ModelSource,
    recipe: Recipe,
    say: Callable[[str], None],
) -> None:
    """Compile ``program`` for the device of ``source``, and write the package to ``path``.

    Raises BackendMissing without a compiler, InvalidArtifact for a network that inductor cannot compile.
    """
    on_cpu = source.device == "cpu"
    if on_cpu:
        require_cpp_compiler(source.name, "AOTInductor")
    description = _describe(program, signature, recipe)
    # What a kernel of several threads throws ends the process, and with whole numbers there may be an index to check.
    one_thread = on_cpu and any(not _is_floating(tensor.datatype.value) for tensor in signature.inputs)
    _compile(program, path, _options(recipe, one_thread=one_thread), description)
    if on_cpu and ends_process(read_package(source, path, "model").kernels):
        say("  its kernels check an index: compiling them again, for one thread")
        _compile(program, path, _options(recipe, one_thread=True), description)
        if ends_process(read_package(source, path, "model").kernels):
            raise InvalidArtifact(f"{path}: its kernels would end the process on a bad index, even made for one thread")


def _compile(program: ExportedProgram, path: Path, options: Mapping[str, Any], description: Description) -> None:
    # torch writes what it finds of the machine into the very dictionary that it is given.
    options = {**options, "aot_inductor.metadata": description.as_metadata()}
    try:
        # Set for the process too: what is only passed on does not reach the passes that freeze weights and fuse what
        # is quantized, nor does it with gradients on.
        with torch.no_grad(), _convolutions_of_any_batch(), _inductor.patch(options):
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(options))
    except Exception as exc:
        raise InvalidArtifact(f"inductor cannot compile the network: {first_line(exc)}") from exc


@contextmanager
def _convolutions_of_any_batch() -> Iterator[None]:
    """Keep torch from bounding the batch when it looks at how a convolution will be computed.

    For one in fp32 it asks whether there are 16 rows, to which one answer becomes a bound of the package; but with two
    threads both have oneDNN compute it (use_mkldnn in ATen/native/Convolution.cpp), so that nothing depends on it.
    """
    choose, threads = torch._C._select_conv_backend, torch.get_num_threads()

    def choose_without_bounds(*arguments: Any, **named: Any) -> Any:
        image = arguments[0] if arguments else named["input"]
        rows = image.shape[0]
        if image.device.type != "cpu" or not isinstance(rows, torch.SymInt):
            return choose(*arguments, **named)
        with rows.node.shape_env.suppress_guards():
            return choose(*arguments, **named)

    torch.set_num_threads(max(2, threads))
    torch._C._select_conv_backend = choose_without_bounds
    try:
        yield
    finally:
        torch._C._select_conv_backend = choose
        torch.set_num_threads(threads)


def _options(recipe: Recipe, *, one_thread: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "freezing": recipe.freezing,
        # torch takes each size for at least 2 when it traces, and would have the package refuse a batch of 1.
        "aot_inductor.check_lowerbound": False,
        # Else kernels run on as many threads as there were here, or have room for as many, whatever they are told.
        **({"cpp.threads": 1} if one_thread else {"cpp.dynamic_threads": True}),
        **recipe.options,
    }
    if recipe.instruction_set in _VECTOR_BITS:
        if "cpp.march" not in _inductor.get_config_copy():
            raise InvalidArtifact(
                f"--isa {recipe.instruction_set.value}: torch {torch.__version__} compiles for this CPU only; "
                "torch 2.13 can be told otherwise"
            )
        options["cpp.simdlen"] = _VECTOR_BITS[recipe.instruction_set]
        options["cpp.march"] = ""
    return options


def _describe(program: ExportedProgram, signature: ArtifactSignature, recipe: Recipe) -> Description:
    native = recipe.instruction_set is InstructionSet.NATIVE
    return Description(
        signature,
        torch=torch.__version__,
        # torch has the compiler use all that this CPU can, and names the vector instructions only.
        instructions=compilers_choice(find_device("cpu").instructions) if native else frozenset(),
        row_independent=recipe.row_independent,
        writes_inputs=_writes_inputs(program),
    )


def _writes_inputs(program: ExportedProgram) -> bool:
    return bool(program.graph_signature.user_inputs_to_mutate)


def _is_floating(datatype: str) -> bool:
    return datatype in ("FP16", "BF16", "FP32", "FP64")
