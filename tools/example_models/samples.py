"""The samples of a model as perf_analyzer reads them, made from sentences and pictures that people read."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_PIXELS = 224
_CENTRE, _SCALE = 127, 128


def write_sentences(repository: Path, target: Path) -> str:
    """Write the sentences of `minilm` as token ids, each by itself and so without padding."""
    from tokenizers import Tokenizer

    sentences = read_sentences(repository)
    tokenizer = Tokenizer.from_file(str(repository / "minilm/tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch(sentences)
    _write(target, [_tokens(encoding.ids, encoding.attention_mask) for encoding in encodings])
    return f"{len(sentences)} sentences"


def read_sentences(repository: Path) -> list[str]:
    """Return the sample sentences, one a line."""
    return (repository / "minilm/data/sentences.txt").read_text(encoding="utf-8").splitlines()


def write_pictures(repository: Path, target: Path) -> str:
    """Write the pictures of `efficientnet` as its input wants them."""
    pictures = picture_files(repository)
    # Text would take four times the room and lose bits.
    _write(
        target, [{"image": {"b64": base64.b64encode(read_picture(picture).tobytes()).decode()}} for picture in pictures]
    )
    return f"{len(pictures)} pictures"


def picture_files(repository: Path) -> list[Path]:
    """Return the sample pictures, in the order of the samples."""
    return sorted((repository / "efficientnet/data").glob("*.png"))


def read_picture(picture: Path) -> NDArray[np.float32]:
    """Return a picture of 224 by 224 pixels as float32 [3, 224, 224]. PNG is lossless: all decoders agree."""
    import numpy as np
    from PIL import Image

    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    if pixels.shape != (_PIXELS, _PIXELS, 3):
        raise ValueError(f"{picture}: has {pixels.shape[1]}x{pixels.shape[0]} pixels, must have {_PIXELS}x{_PIXELS}")
    return np.ascontiguousarray((pixels.transpose(2, 0, 1) - _CENTRE) / _SCALE)


def _tokens(ids: Sequence[int], mask: Sequence[int]) -> dict[str, Any]:
    return {
        name: {"content": list(numbers), "shape": [len(numbers)]}
        for name, numbers in {"input_ids": ids, "attention_mask": mask}.items()
    }


def _write(target: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    lines = ",\n".join(f"    {json.dumps(sample)}" for sample in samples)
    target.write_text(f'{{\n  "data": [\n{lines}\n  ]\n}}\n')
