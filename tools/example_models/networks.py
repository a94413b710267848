"""The networks that the example models define, and their weights as the server loads them."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING

from tools.example_models.artifacts import MaterializeError
from tools.example_models.wheels import EFFICIENTNET, MINILM

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn


def load_network(definition: Path) -> nn.Module:
    """Return the network of a `model.py`, with the `model.safetensors` beside it, ready to be called."""
    from safetensors.torch import load_file

    network = build_network(definition)
    network.load_state_dict(load_file(definition.with_name("model.safetensors")), strict=True, assign=True)
    return network.eval()


def build_network(definition: Path) -> nn.Module:
    """Return the network of a `model.py`, without weights."""
    spec = importlib.util.spec_from_file_location("preheat_materialize_model", definition)
    if spec is None or spec.loader is None:
        raise MaterializeError(f"{definition}: not a Python source file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.build_model()
    return network


def write_tokenizer(_repository: Path, target: Path) -> str:
    """Write the tokenizer of `minilm`, for clients: the server does not read it."""
    shutil.copyfile(MINILM.file("model/tokenizer.json"), target)
    return f"from {MINILM.requirement}"


def write_minilm_weights(repository: Path, target: Path) -> str:
    """Write the weights of `minilm`."""
    from safetensors.torch import load_file

    published = load_file(MINILM.file("model/model.safetensors"))
    return _write_weights(published, MINILM.requirement, repository / "minilm/1/model.py", target)


def write_efficientnet_weights(repository: Path, target: Path) -> str:
    """Write the weights of `efficientnet`. The published file is a pickle: it is read as data, and runs nothing."""
    import torch

    published = torch.load(EFFICIENTNET.file("models/efficientnet-lite0-57934424.pth"), weights_only=True)
    return _write_weights(published, EFFICIENTNET.requirement, repository / "efficientnet/1/model.py", target)


def _write_weights(published: Mapping[str, Tensor], origin: str, definition: Path, target: Path) -> str:
    """Keep the tensors that the network has, so that they load strictly: minilm's come with a pooler that it lacks."""
    from safetensors.torch import save_file

    wanted = build_network(definition).state_dict().keys()
    if absent := wanted - published.keys():
        raise MaterializeError(f"{definition} has parameters that {origin} lacks: {', '.join(sorted(absent))}")
    # Some are laid out with their channels last, which the format has no words for.
    save_file({name: published[name].contiguous() for name in wanted}, target)
    return f"{len(wanted)} of {len(published)} tensors from {origin}"
