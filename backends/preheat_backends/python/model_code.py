"""``model.py``: its class TritonPythonModel, and the calls that Triton makes to it before any request."""

import inspect
import json
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from preheat.backend import Instance, ModelSource, PartialConfig, Signature
from preheat.errors import InvalidArtifact, ServingError
from preheat_backends.artifacts import Kind, Takes, find_artifact
from preheat_backends.python import interface
from preheat_backends.python.errors import describe, unsupported
from preheat_backends.python.logger import model_log
from preheat_backends.python.model_config import ModelConfig
from preheat_backends.python.model_modules import ModelModules
from preheat_backends.python.session import PythonSession

_TAKES = Takes(
    backend="python",
    names=("model.py",),
    kinds=frozenset({Kind.TEXT}),
    description="a model.py that defines a class TritonPythonModel",
)
_ENVIRONMENT = "EXECUTION_ENV_PATH"


class ModelCode:
    """The code of one version. Immutable: every instance runs it anew, in modules of its own.

    Whatever the code raises here fails the load as InvalidArtifact, with its type, its text and where it happened.
    """

    def __init__(self, source: ModelSource) -> None:
        """Find the code. Raises InvalidArtifact, InvalidConfig."""
        if _ENVIRONMENT in source.parameters:
            raise source.refuse(
                _ENVIRONMENT,
                source.parameters[_ENVIRONMENT],
                "not supported by this server: models run in its own process; install there what they import",
            )
        self._source = source
        # A model may change the working directory, and its paths must outlast that.
        self._folder = source.version_path.absolute()
        self._path = find_artifact(source, _TAKES).path.absolute()
        self._log = model_log(source.name)

    def complete(self) -> PartialConfig:
        """What ``auto_complete_config`` adds to the configuration. The code is imported for it, and forgotten again."""
        with closing(self._make_modules()) as modules:
            return self._auto_complete(self._import_class(modules))

    def open(self, instance: Instance, signature: Signature) -> PythonSession:
        """Make an instance of the model and initialize it, on the thread that will own it."""
        modules = self._make_modules()
        try:
            model = self._initialize(self._import_class(modules), instance)
        except BaseException:
            modules.close()
            raise
        return PythonSession(model, modules, signature=signature, log=self._log)

    def _make_modules(self) -> ModelModules:
        pb_utils = interface.interface_of(self._log, self._folder)
        # The version's folder and the model's: Triton searches both.
        return ModelModules([self._folder, self._folder.parent], provided={interface.MODULE: pb_utils})

    def _import_class(self, modules: ModelModules) -> Any:
        with self._calling("importing it"):
            module = modules.import_file(self._path)
        model_class = getattr(module, "TritonPythonModel", None)
        if not isinstance(model_class, type):
            raise InvalidArtifact(f"{self._path}: defines no class TritonPythonModel")
        execute = getattr(model_class, "execute", None)
        if not callable(execute):
            raise InvalidArtifact(f"{self._path}: TritonPythonModel has no method execute(self, requests)")
        if inspect.iscoroutinefunction(execute):
            raise InvalidArtifact(f"{self._path}: {unsupported('async def execute; make it a plain def')}")
        return model_class

    def _auto_complete(self, model_class: Any) -> PartialConfig:
        if not hasattr(model_class, "auto_complete_config"):
            return PartialConfig()
        config = ModelConfig(self._config())
        with self._calling("auto_complete_config()"):
            completed = model_class.auto_complete_config(config)
        if not isinstance(completed, ModelConfig):
            raise InvalidArtifact(
                f"{self._path}: auto_complete_config() returned {type(completed).__name__}; "
                "it must return the pb_utils.ModelConfig that it was given"
            )
        try:
            return completed.read()
        except ValueError as exc:
            raise InvalidArtifact(f"{self._path}: auto_complete_config(): {exc}") from exc

    def _initialize(self, model_class: Any, instance: Instance) -> Any:
        with self._calling("TritonPythonModel()"):
            model = model_class()
        if hasattr(model, "initialize"):
            with self._calling("initialize()"):
                model.initialize(self._arguments(instance))
        return model

    @contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        try:
            yield
        except ServingError as exc:
            raise InvalidArtifact(f"{self._path}: {what}: {exc}{self._place(exc)}") from exc
        except (Exception, SystemExit) as exc:
            raise InvalidArtifact(f"{self._path}: {what} raised {describe(exc)}{self._place(exc)}") from exc

    def _place(self, error: BaseException) -> str:
        """The last line of the model's own code that ``error`` passed through."""
        folder = str(self._folder.parent)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
        return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""

    def _config(self) -> dict[str, Any]:
        config = {"max_batch_size": 0, "input": [], "output": [], **self._source.config}
        return config | {"name": self._source.name, "backend": "python"}

    def _arguments(self, instance: Instance) -> dict[str, str]:
        """What ``initialize`` is given: text throughout."""
        device, _, ordinal = instance.device.partition(":")
        kinds = {group.get("kind") for group in self._source.config.get("instance_group", ())}
        kind = "MODEL" if kinds == {"KIND_MODEL"} else {"cpu": "CPU", "cuda": "GPU"}[device]
        return {
            "model_config": json.dumps(self._config()),
            "model_instance_kind": kind,
            "model_instance_name": f"{self._source.name}_0_{instance.ordinal}",
            "model_instance_device_id": ordinal or "0",
            "model_repository": str(self._folder.parent),
            "model_version": str(self._source.version),
            "model_name": self._source.name,
        }
