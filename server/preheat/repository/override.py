"""A model that is to be served otherwise than its folder says, as a client asked for."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from google.protobuf import json_format, text_format

from preheat.errors import InvalidRequest
from preheat.protocol import model_config_pb2 as pb
from preheat.repository.configuration import CONFIG_FILE
from preheat.repository.names import is_model_name, is_plain, is_version
from preheat.repository.scan import BrokenModel, ModelFolder, read_model

_PLACE = "preheat-load-"


class Override:
    """A folder for the model in a temporary place, which is removed when nobody holds this any more.

    ``folder`` is what it is read as, like any other.
    """

    def __init__(self, name: str, config: str, *, files: Mapping[str, bytes], original: Path | None) -> None:
        """``config`` is a ModelConfig in JSON. Without ``files``, by VERSION/NAME, what lies in ``original`` is served.

        Raises InvalidRequest, and OSError where it cannot be written.
        """
        if not is_model_name(name):
            raise InvalidRequest(f"model name '{name}': only letters, digits, '_', '-' and '.' can be in one")
        text = text_format.MessageToString(_parse(config))
        paths = {_plain(path): content for path, content in files.items()}
        place = Path(tempfile.mkdtemp(prefix=_PLACE))
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        path = place / name
        path.mkdir()
        (path / CONFIG_FILE).write_text(text, encoding="utf-8")
        for relative, content in paths.items():
            (path / relative).parent.mkdir(parents=True, exist_ok=True)
            (path / relative).write_bytes(content)
        for entry in original.iterdir() if original is not None and not files else ():
            if entry.name != CONFIG_FILE:
                (path / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
        self.folder = _read(path)


def _parse(config: str) -> pb.ModelConfig:
    try:
        return json_format.Parse(config, pb.ModelConfig())
    except json_format.ParseError as exc:
        raise InvalidRequest(f"load parameter 'config': is no ModelConfig in JSON: {exc}") from exc


def _plain(path: str) -> PurePosixPath:
    """The path of a file that a client names, below the model's folder and no way out of it. Raises InvalidRequest."""
    parts = path.split("/")
    if len(parts) < 2 or not is_version(parts[0]) or not all(map(is_plain, parts)):
        raise InvalidRequest(
            f"load parameter 'file:{path}': must be file:VERSION/NAME, such as file:1/model.onnx, of plain names"
        )
    return PurePosixPath(*parts)


def _read(path: Path) -> ModelFolder:
    model = read_model(path)
    if isinstance(model, BrokenModel):
        raise InvalidRequest(str(model.reason).replace(str(path / CONFIG_FILE), "load parameter 'config'"))
    return model
