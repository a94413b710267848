"""Write the answers that the example models are held to: those of other people's implementations, not of ours.

Run it from the root of the checkout, in an environment that has both beside ours, where the samples have changed:

    pip install --no-deps efficientnet-lite-pytorch==0.1.0 transformers==5.24.0 regex
    python -m tools.example_models.reference

Both run eagerly in PyTorch, in float32, one sample at a time.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from tools.example_models.samples import picture_files, read_picture, read_sentences
from tools.example_models.wheels import EFFICIENTNET, MINILM
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REPOSITORY = Path(__file__).resolve().parents[2] / "model_repo"
_DIGITS = 8  # as many as a float32 has, and some


def main() -> None:
    """Write both files."""
    with torch.inference_mode():
        _write("minilm", "sentence_embedding", "BertModel of transformers 5.24.0", _embeddings())
        _write("efficientnet", "logits", "efficientnet-lite-pytorch 0.1.0", _logits())


def _embeddings() -> Mapping[str, Sequence[float]]:
    """Embed as the published model's card says: the mean of the last hidden states, at unit length."""
    transformers: Any = importlib.import_module("transformers")
    tokenizers: Any = importlib.import_module("tokenizers")
    network = transformers.BertModel(transformers.BertConfig(**_MINILM), add_pooling_layer=False)
    weights = load_file(MINILM.file("model/model.safetensors"))
    network.load_state_dict({name: weights[name] for name in network.state_dict()}, strict=True)
    network.eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(MINILM.file("model/tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    answers = {}
    for sentence in read_sentences(_REPOSITORY):
        hidden = network(torch.tensor([tokenizer.encode(sentence).ids])).last_hidden_state
        answers[sentence] = functional.normalize(hidden.mean(dim=1), dim=1)[0].tolist()
    return answers


_MINILM = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "vocab_size": 30_522,
}


def _logits() -> Mapping[str, Sequence[float]]:
    implementation: Any = importlib.import_module("efficientnet_lite_pytorch")
    network = implementation.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EFFICIENTNET.file("models/efficientnet-lite0-57934424.pth"), weights_only=True))
    network.eval()
    pictures = picture_files(_REPOSITORY)
    return {picture.name: network(torch.from_numpy(read_picture(picture))[None])[0].tolist() for picture in pictures}


def _write(model: str, output: str, reference: str, answers: Mapping[str, Sequence[float]]) -> None:
    data = [{output: [float(f"{number:.{_DIGITS}g}") for number in answer]} for answer in answers.values()]
    heading = {"reference": f"{reference}, PyTorch eager, float32", "samples": list(answers)}
    fields = [f"  {json.dumps(name)}: {json.dumps(text, ensure_ascii=False)},\n" for name, text in heading.items()]
    rows = ",\n".join(f"    {json.dumps(row)}" for row in data)
    path = _REPOSITORY / model / "data/expected.json"
    path.write_text(f'{{\n{"".join(fields)}  "data": [\n{rows}\n  ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
