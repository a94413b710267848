"""Models written for Triton, each made for one test, and what the server would do with them."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.backends.cases import make_source

from preheat.backend import Dimension, Instance, Model, Outcome, Request, RequestSession, Signature, TensorSpec
from preheat.tensors import DataType, Tensors
from preheat_backends.python import PythonBackend

# A model that answers with the text that `answer(request)` gives, in which a test puts what it is about.
SOURCE = """
import triton_python_backend_utils as pb_utils
import numpy as np
{imports}

class TritonPythonModel:
    def initialize(self, args):
        self.args = args

    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        text = self.answer(request)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text", np.array([text], dtype=np.object_))])

    def answer(self, request):
{body}
"""
TEXT = TensorSpec("text", DataType.BYTES, (Dimension(),))
TELLS = Signature((TensorSpec("x", DataType.FP32, (Dimension(),), optional=True),), (TEXT,))


def telling(body: str, *, imports: str = "") -> str:
    """The source of a model that answers with the text that ``body`` returns."""
    return SOURCE.format(imports=textwrap.dedent(imports), body=textwrap.indent(textwrap.dedent(body), " " * 8))


def write(folder: Path, source: str, files: Mapping[str, str] | None = None) -> Path:
    """Write model.py and ``files`` beside it, or in the model's folder with "../"; the model's folder."""
    (folder / "1").mkdir(parents=True, exist_ok=True)
    for name, content in {"model.py": source, **(files or {})}.items():
        path = folder / "1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
    return folder


def load(folder: Path, signature: Signature = TELLS, **settings: Any) -> Model:
    """Do what the server's loader does."""
    backend, source = PythonBackend(), make_source(folder, **settings)
    backend.complete(source)
    return backend.load(source, signature)


def open_instance(model: Model, ordinal: int = 0) -> RequestSession:
    session = model.open(Instance(ordinal, "cpu", 1))
    assert isinstance(session, RequestSession)
    return session


@contextmanager
def opened(folder: Path, signature: Signature = TELLS, **settings: Any) -> Iterator[RequestSession]:
    """A session of the model in ``folder``, on this thread."""
    model = load(folder, signature, **settings)
    session = open_instance(model)
    try:
        yield session
    finally:
        session.close()
        model.close()


def outputs_of(outcome: Outcome) -> Tensors:
    """The outputs of an outcome; raises it if it is an error."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.outputs


def ask(session: RequestSession, inputs: Tensors | None = None, **fields: Any) -> str:
    """The text that the model answers with; ``fields`` are the request's."""
    (outcome,) = session.execute([replace(Request("", inputs or {}, 1, (), {}), **fields)])
    text: bytes = outputs_of(outcome)["text"][0]
    return text.decode()
