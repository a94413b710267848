"""minilm's ONNX graph in 8 bits: quantized with scales that real sentences gave, and held against the graph before."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from tools.example_models.artifacts import MaterializeError
from tools.example_models.samples import read_sentences

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

    Batch = dict[str, NDArray[np.int64]]

_MAX_SEQUENCE = 512
_LEAST_COSINE = 0.99
# How much of a channel's size is moved into the weights, as an exponent.
_MOVED = 0.7
_WIDE_LAYERS_KEPT = 4
# What the scales of activations are made from; the samples, which the answers are held to, are others.
_CALIBRATION = (
    "Yes.",
    "Snow fell all night.",
    "Where did you put the keys to the cellar?",
    "The new bridge will carry trams, bicycles and people on foot, but no cars.",
    "Whisk three eggs with a little milk, salt and pepper, and pour them into the hot pan.",
    "error: connection to 10.0.0.7:5432 refused after 3 attempts (timeout=30s)",
    "def area(radius): return 3.14159 * radius ** 2",
    "In 1969, 600 million people watched two men walk on the Moon.",
    "Die Bäckerei an der Ecke öffnet um sechs Uhr.",
    "El río crece cada primavera cuando se derrite la nieve.",
    "Your order #48213 has shipped; it should arrive on Tuesday, between 9:00 and 12:00.",
    "The patient reports a dull pain in the left shoulder that is worse at night and after exercise.",
    "Shares in the airline fell by 4.2 % after it cut its forecast for the second time in three months.",
    "Neural networks learn by adjusting their weights so that the loss becomes smaller.",
    "“Nobody told me,” she said, and closed the door behind her.",
    "The committee shall meet at least once in each quarter; a majority of its members is a quorum.",
    "Goal! The captain scores from thirty metres in the last minute of extra time!",
    "Whales sing in dialects that change from one ocean to the next, and from one year to the next.",
    "Cheap flights hotel Rome weekend",
    "To whom it may concern: I hereby cancel my subscription as of the end of this month.",
    "The second violin comes in a bar too early, again, and the conductor puts down his baton.",
    "Under load the fan curve is steep, and the card throttles at 83 degrees unless the case is well ventilated.",
    "ok thx, see u tmrw :)",
    "A theory is more than a guess: it explains what is known, and says what would prove it wrong.",
)


def write_quantized_minilm_graph(repository: Path, target: Path) -> str:
    """Write the graph of `minilm_onnx` with most of its matrix multiplications in 8 bits."""
    import onnx

    graph_file = repository / "minilm_onnx/1/model.onnx"
    tokenizer_file = repository / "minilm/tokenizer.json"
    batches = list(_batches(tokenizer_file, _calibration_texts()))
    model = onnx.load(graph_file)
    multiplications = _multiplications(model.graph)
    _even_out(model, multiplications, batches)
    with _quiet_quantizer():
        _quantize(model, target, batches, skip=_sensitive(model.graph, multiplications))
    cosine = _least_cosine(graph_file, target, list(_batches(tokenizer_file, [read_sentences(repository)])))
    if not cosine >= _LEAST_COSINE:  # written so that NaN is refused too
        raise MaterializeError(
            f"the quantized graph's answers are as close to the graph's as a cosine of {cosine:.4f}, at least "
            f"{_LEAST_COSINE} is wanted; it was not written; try the version of onnxruntime that pyproject.toml names"
        )
    return f"within a cosine of {cosine:.4f} of minilm_onnx"


def _multiplications(graph: GraphProto) -> list[NodeProto]:
    """Return the multiplications with weights."""
    weights = {weight.name for weight in graph.initializer}
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def _sensitive(graph: GraphProto, multiplications: Sequence[NodeProto]) -> list[str]:
    """Name the multiplications that stay as they are.

    Attention multiplies activations with each other. The activations behind Gelu have a few elements that are tens of
    times larger than the others, which a scale for all of them coarsens; the later layers forgive that.
    """
    chosen = {node.name for node in multiplications}
    maker = {name: node.op_type for node in graph.node for name in node.output}
    wide = [node.name for node in multiplications if maker.get(node.input[0]) == "Gelu"]
    others = [node.name for node in graph.node if node.op_type == "MatMul" and node.name not in chosen]
    return [*others, *wide[:_WIDE_LAYERS_KEPT]]


def _even_out(model: ModelProto, multiplications: Sequence[NodeProto], batches: Sequence[Batch]) -> None:
    """Move what some channels behind a LayerNormalization are larger by into the weights, whose scales are finer.

    This is SmoothQuant (Xiao et al., 2022): channel j is divided by a factor, row j of the weights multiplied by it.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    maker = {name: node.op_type for node in graph.node for name in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in multiplications:
        if maker.get(node.input[0]) == "LayerNormalization":
            users.setdefault(node.input[0], []).append(node)
    for name, largest in _largest(model, list(users), batches).items():
        matrices = [numpy_helper.to_array(weights[node.input[1]]) for node in users[name]]
        factor = largest**_MOVED / np.max([abs(matrix).max(axis=1) for matrix in matrices], axis=0) ** (1 - _MOVED)
        for node, matrix in zip(users[name], matrices, strict=True):
            changed = numpy_helper.from_array(matrix * factor[:, np.newaxis], node.input[1])
            weights[node.input[1]].CopyFrom(changed)
            node.input[0] = f"{name}_even"
        graph.initializer.append(numpy_helper.from_array(1 / factor, f"{name}_factor"))
        division = helper.make_node("Mul", [name, f"{name}_factor"], [f"{name}_even"], name=f"{name}_even")
        graph.node.insert(list(graph.node).index(users[name][0]), division)


def _largest(model: ModelProto, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, NDArray[np.float32]]:
    """Return the largest magnitude of each channel of these activations."""
    import numpy as np
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    peaks = [[abs(array).max(axis=(0, 1)) for array in session.run(names, batch)] for batch in batches]
    return dict(zip(names, np.max(peaks, axis=0), strict=True))


def _quantize(model: ModelProto, target: Path, batches: Sequence[Batch], *, skip: Sequence[str]) -> None:
    """Put QuantizeLinear and DequantizeLinear before the multiplications: a scale for each column of weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Batch | None:
            return next(self._batches, None)

    quantize_static(
        model,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=list(skip),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # A pair for each multiplication, or ONNX Runtime does not fuse those that share one.
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "DedicatedQDQPair": True},
    )


@contextlib.contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Silence advice that does not matter here; errors are raised, not logged."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _calibration_texts() -> Iterator[Sequence[str]]:
    """Yield batches: the sentences, padded to the longest, and the page that they make."""
    yield _CALIBRATION
    yield [" ".join(_CALIBRATION)]


def _batches(tokenizer_file: Path, texts: Any) -> Iterator[Batch]:
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(max_length=_MAX_SEQUENCE)
    tokenizer.enable_padding()
    for batch in texts:
        encodings = tokenizer.encode_batch(list(batch))
        yield {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
        }


def _least_cosine(graph_file: Path, quantized_file: Path, batches: Sequence[Batch]) -> float:
    """Return the smallest cosine between the two answers to a row."""
    import numpy as np

    expected, answers = (_answers(file, batches) for file in (graph_file, quantized_file))
    cosines = [
        (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        for one, other in zip(expected, answers, strict=True)
    ]
    return float(np.concatenate(cosines).min())


def _answers(graph_file: Path, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # As the backend has it: without, answers are wrong on CPUs without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(graph_file, options, providers=["CPUExecutionProvider"])
    return [session.run(["sentence_embedding"], batch)[0] for batch in batches]
