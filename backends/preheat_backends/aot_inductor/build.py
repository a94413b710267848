"""The build tool: a model of the eager backend in, the same model as a package out.

``python -m preheat_backends.aot_inductor.build model_repo/minilm /srv/models/minilm_package``
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from preheat.backend import Instance, ModelSource, Signature
from preheat.errors import BackendMissing, ExecutionFailed, InvalidArtifact, InvalidConfig, ServingError
from preheat_backends.aot_inductor.backend import AotInductorBackend
from preheat_backends.aot_inductor.model_folder import (
    ModelFolder,
    check_configuration,
    read_model_folder,
    write_configuration,
)
from preheat_backends.aot_inductor.packaging import InstructionSet, Recipe, compile_package
from preheat_backends.aot_inductor.quantizing import Quantization, quantize
from preheat_backends.aot_inductor.tracing import describe, load_served, make_inputs, trace
from preheat_backends.torch_programs.dynamic_shapes import varying_axes
from preheat_backends.torch_programs.precision import Precision
from preheat_backends.torch_programs.session import TorchSession
from preheat_backends.torch_tensors import to_numpy

_MODULE = "preheat_backends.aot_inductor.build"
_CALIBRATION = "calibration.safetensors"
_NEAR = 1e-2
# Of the largest shape that is compared: more would take an uncompiled network minutes.
_MOST_ELEMENTS = 2**16


def main(words: list[str] | None = None) -> int:
    """Build as the command line says. 0, or 1 with a line that says why not."""
    arguments = _parser().parse_args(words)
    try:
        _build(arguments)
    except ServingError as exc:
        sys.stderr.write(f"{_MODULE}: {exc}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}", description="Compile a model of the eager backend into an AOTInductor package."
    )
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="a model for the backend 'eager'")
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT_FOLDER", help="the model to write; its name is the folder's"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to compile for (default: cpu)")
    parser.add_argument("--dtype", choices=[each.value for each in Precision], help="what the network computes in")
    parser.add_argument("--max-batch", type=_count, metavar="N", help="the largest batch (default: as configured)")
    parser.add_argument(
        "--isa", choices=[each.value for each in InstructionSet], default="native",
        help="the CPUs it is for: those like this one, or all with AVX2 or AVX-512 (default: native)",
    )  # fmt: skip
    parser.add_argument(
        "--quantization", choices=[each.value for each in Quantization], help="compute in 8-bit integers, on the CPU"
    )
    parser.add_argument(
        "--calibration", metavar="FILE",
        help="samples in the version's folder, for pt2e_static (default: calibration.safetensors)",
    )  # fmt: skip
    parser.add_argument("--no-freezing", action="store_true", help="keep weights as they are, not laid out for kernels")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)


def _build(arguments: argparse.Namespace) -> None:
    if arguments.output.exists():
        raise InvalidArtifact(f"{arguments.output} exists; name another folder, or remove it")
    device = _device(arguments)
    _say(f"reading {arguments.model}")
    model = read_model_folder(arguments.model, device=device, max_batch_size=arguments.max_batch)
    unfinished = arguments.output.with_name(f".{arguments.output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    # The server holds a model's name against its folder's.
    folder = unfinished / arguments.output.name
    try:
        (folder / "1").mkdir(parents=True)
        _fill(folder, model, arguments)
        check_configuration(folder)
        folder.rename(arguments.output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _say(f"wrote {arguments.output}: serve the folder it is in, by preheat serve {arguments.output.parent}")


def _device(arguments: argparse.Namespace) -> str:
    """What to compile for, in the server's words. Raises BackendMissing, or InvalidConfig for what it cannot be."""
    quantized = arguments.quantization is not None
    if quantized and arguments.no_freezing:
        raise InvalidConfig(
            f"--quantization {arguments.quantization}: is slow without freezing; leave out --no-freezing"
        )
    if quantized and arguments.dtype is not None:
        raise InvalidConfig(f"--dtype {arguments.dtype}: what is quantized computes in 8 bits, and fp32; leave it out")
    if arguments.calibration is not None and arguments.quantization != Quantization.PT2E_STATIC.value:
        raise InvalidConfig(f"--calibration {arguments.calibration}: goes with --quantization pt2e_static only")
    if arguments.device == "cpu":
        return "cpu"
    if quantized:
        raise InvalidConfig(
            f"--quantization {arguments.quantization}: has kernels for CPUs only; leave out --device cuda"
        )
    if not torch.cuda.is_available():
        why = "was built without CUDA" if torch.version.cuda is None else "finds no CUDA device or driver"
        raise BackendMissing(f"--device cuda: torch {torch.__version__} {why}")
    return "cuda:0"


def _fill(folder: Path, model: ModelFolder, arguments: argparse.Namespace) -> None:
    """Write the model into ``folder``, and hold it against the network that it is made of."""
    device = torch.device(model.source.device)
    dtype = Precision(arguments.dtype).dtype if arguments.dtype else None
    served, signature = load_served(model.source, model.signature, dtype)
    model = replace(model, signature=signature)
    recipe = Recipe(InstructionSet(arguments.isa), freezing=not arguments.no_freezing)
    network: torch.nn.Module = served
    if arguments.quantization is not None:
        _say(f"quantizing to {arguments.quantization}")
        quantization = Quantization(arguments.quantization)
        network, recipe = quantize(
            served, model, quantization, calibration=arguments.calibration or _CALIBRATION, recipe=recipe
        )
    _say(f"tracing for {_axes(signature)}")
    program = trace(network, signature, device)
    package = folder / "1" / "model.pt2"
    _say(f"compiling for {model.source.device}, which takes a minute or more")
    started_s = time.monotonic()
    compile_package(
        program, package, signature=describe(program, signature, [spec.name for spec in signature.outputs]),
        source=model.source, recipe=recipe, say=_say,
    )  # fmt: skip
    _say(f"  {time.monotonic() - started_s:.0f} s, {package.stat().st_size / 2**20:.1f} MiB")
    made = f"Built of {arguments.model} by {_MODULE}, torch {torch.__version__}."
    write_configuration(model, folder / "config.pbtxt", name=arguments.output.name, made=made)
    near = _NEAR if dtype is None and arguments.quantization is None else None
    _compare(folder, model, served, near=near)


def _axes(signature: Signature) -> str:
    return ", ".join(map(str, varying_axes(signature).values())) or "one shape"


def _compare(folder: Path, model: ModelFolder, served: torch.nn.Module, *, near: float | None) -> None:
    """Run the package as a server would, beside the network. Raises InvalidArtifact if they are not ``near``.

    Without a limit, as where a type or quantization makes for a difference, it is only said how far they are.
    """
    signature = model.signature
    source = ModelSource(
        model.source.name, 1, version_path=folder / "1", config_path=folder / "config.pbtxt",
        device=model.source.device, threads=torch.get_num_threads(),
    )  # fmt: skip
    package = AotInductorBackend().load(source, signature)
    session = package.open(Instance(0, source.device, torch.get_num_threads()))
    try:
        for sizes in _shapes_to_compare(signature):
            _compare_at(session, signature, served, sizes, near=near)
    finally:
        session.close()
        package.close()


def _shapes_to_compare(signature: Signature) -> Iterable[Mapping[str, int]]:
    """The least sizes, some between, and the largest; 1 and 2 first, which torch takes for special."""
    axes = varying_axes(signature)
    shapes: list[dict[str, int]] = []
    for wanted in (1, 2, 3, 17, 2**20):
        shape: dict[str, int] = {}
        for name, axis in axes.items():
            largest = wanted if axis.maximum is None else min(wanted, axis.maximum)
            size = max(axis.minimum, min(largest, max(1, _MOST_ELEMENTS // max(1, _product(shape)))))
            shape[name] = -(-size // axis.multiple_of) * axis.multiple_of
        if shape not in shapes:
            shapes.append(shape)
    return shapes


def _product(shape: Mapping[str, int]) -> int:
    product = 1
    for size in shape.values():
        product *= size
    return product


def _compare_at(
    session: TorchSession, signature: Signature, served: torch.nn.Module, sizes: Mapping[str, int], *,
    near: float | None,
) -> None:  # fmt: skip
    device = next((tensor.device for tensor in served.parameters()), torch.device("cpu"))
    inputs = make_inputs(signature, sizes, device)
    where = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "its one shape"
    with torch.inference_mode():
        expected = served(*(tensor.clone() for tensor in inputs))
    arrays = {spec.name: to_numpy(tensor, copy=True) for spec, tensor in zip(signature.inputs, inputs, strict=True)}
    try:
        answers = session.infer(arrays)
    except ExecutionFailed as exc:
        raise InvalidArtifact(f"the package fails at {where}, where the network does not: {exc}") from exc
    for spec, tensor in zip(signature.outputs, expected, strict=True):
        answer, right = torch.from_numpy(answers[spec.name].astype("float64")), tensor.double().cpu()
        if answer.shape != right.shape:
            raise InvalidArtifact(
                f"output {spec.name!r} of the package at {where} is {list(answer.shape)}; the network's is "
                f"{list(right.shape)}"
            )
        difference = float((answer - right).norm() / right.norm().clamp_min(1e-12))
        _say(f"  {where}: {spec.name!r} differs from the network's by {difference:.1e} of its length")
        if not difference <= (near if near is not None else float("inf")):
            raise InvalidArtifact(
                f"output {spec.name!r} of the package at {where} is not the network's: {difference:.1e}"
            )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
