"""``model.pt``: an archive of ``torch.jit.save``, with its weights."""

import re
import threading
import warnings
import zipfile
from pathlib import Path

import torch

from preheat.errors import InvalidArtifact
from preheat_backends.torch_programs.program import first_line

# Held while warnings are silenced, which is the process's business.
_LOADING = threading.Lock()


def _check_intact(path: Path) -> None:
    """Raise InvalidArtifact for a damaged file: torch itself does not look at the archive's checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as exc:  # of a damaged archive zipfile raises half a dozen types, few documented
        raise InvalidArtifact(f"{path}: damaged TorchScript archive: {first_line(exc)}") from exc
    if damaged is not None:
        raise InvalidArtifact(f"{path}: damaged TorchScript archive: {damaged} does not have its checksum")


def load_archive(path: Path, device: torch.device, *, freeze: bool, optimize: bool) -> torch.jit.ScriptModule:
    """Load the archive onto ``device``, in eval mode. What it defines runs when it is called, some of it here.

    ``freeze`` it, unless it was frozen before it was saved; ``optimize`` it, for good. Raises InvalidArtifact.
    """
    _check_intact(path)
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
