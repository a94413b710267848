"""One instance of a model: its TritonPythonModel, and what goes in and out of it."""

import logging
from collections.abc import Sequence
from typing import Any

from preheat.backend import Outcome, Request, RequestSession, Signature
from preheat.errors import ExecutionFailed, ServingError
from preheat_backends.python.errors import describe
from preheat_backends.python.messages import InferenceResponse, ReceivedRequest
from preheat_backends.python.model_modules import ModelModules


class PythonSession(RequestSession):
    """Belongs to the thread that opened it, and so does ``model``, a TritonPythonModel that has been initialized."""

    def __init__(self, model: Any, modules: ModelModules, *, signature: Signature, log: logging.Logger) -> None:
        self._model = model
        self._modules = modules
        self._outputs = {spec.name: spec.datatype for spec in signature.outputs}
        self._log = log

    def execute(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        """Have the model execute all ``requests`` in one call. If that raises, it is the answer to each of them."""
        responses = self._execute([ReceivedRequest(request, outputs=self._outputs) for request in requests])
        return [self._outcome(response) for response in responses]

    def close(self) -> None:
        """Have the model finalize, if it can, and forget its modules."""
        try:
            if hasattr(self._model, "finalize"):
                self._model.finalize()
        except (Exception, SystemExit):
            self._log.exception("finalize() failed")
        finally:
            self._modules.close()
            del self._model

    def _execute(self, requests: list[ReceivedRequest]) -> Sequence[object]:
        try:
            responses = self._model.execute(requests)
        except ServingError:
            raise
        except (Exception, SystemExit) as exc:
            self._log.exception("execute() failed for a batch of %d requests", len(requests))
            raise ExecutionFailed(describe(exc)) from exc
        if not isinstance(responses, list | tuple):
            raise ExecutionFailed(
                f"execute() returned {type(responses).__name__}; it must return a list of pb_utils.InferenceResponse"
            )
        return responses

    def _outcome(self, response: object) -> Outcome:
        if not isinstance(response, InferenceResponse):
            return ExecutionFailed(
                f"execute() answered a request with {type(response).__name__}; it must be a pb_utils.InferenceResponse"
            )
        return response.as_outcome(self._outputs)
