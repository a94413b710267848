"""``model.pt``: an archive of ``torch.jit.save``, with its weights."""

import re
import threading
import warnings
from pathlib import Path

import torch

from preheat.errors import InvalidArtifact
from preheat_backends.artifacts import check_archive

# Held while warnings are silenced, which is the process's business.
_LOADING = threading.Lock()


def load_archive(path: Path, device: torch.device, *, freeze: bool, optimize: bool) -> torch.jit.ScriptModule:
    """Load the archive onto ``device``, in eval mode. What it defines runs when it is called, some of it here.

    ``freeze`` it, unless it was frozen before it was saved; ``optimize`` it, for good. Raises InvalidArtifact.
    """
    check_archive(path)
    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # said in the log, in better words
        try:
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
            if hasattr(module, "training"):  # a module that was frozen before it was saved is in eval mode for good
                module.eval()
                if freeze:
                    module = torch.jit.freeze(module)
            if optimize:
                module = torch.jit.optimize_for_inference(module)
        except Exception as exc:
            raise InvalidArtifact(f"{path}: torch.jit cannot load it: {last_line(exc)}") from exc
    return module


def last_line(error: BaseException) -> str:
    """The last line of what TorchScript says that has words in it; traces of the archive's code come before."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if re.search(r"\w{2}", line) and not line.startswith("~")]
    return (told[-1] if told else type(error).__name__)[:400]
