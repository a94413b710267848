"""A backend whose loads and executions wait until the test process lets them go. Runs in the server.

The test listens on a port (``tests/e2e/gatekeeper.py``); what arrives at the gate says so there in a line of JSON, and
goes on when a line, or the end of the connection, comes back. So a test knows that an execution has begun, with how
many rows and on which thread, and decides when it ends, without a clock.
"""

import json
import socket
import threading
from dataclasses import dataclass

from preheat.backend import (
    Backend,
    Hardware,
    Instance,
    Model,
    ModelSource,
    PartialConfig,
    Session,
    Signature,
    TensorSession,
)
from preheat.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Parameters:
    """``port``: where on the loopback interface the test listens."""

    port: int = 0


class Gate:
    """One connection to the test. Belongs to one thread."""

    def __init__(self, source: ModelSource, *, instance: int) -> None:
        port = source.parse_parameters(Parameters).port
        self._stream = socket.create_connection(("127.0.0.1", port)).makefile("rwb", buffering=0)
        self._arrival = {"model": source.name, "instance": instance}

    def pass_through(self, what: str, *, rows: int) -> None:
        """Say who is here, and block until the test lets it go."""
        arrival = {**self._arrival, "what": what, "thread": threading.get_ident(), "rows": rows}
        self._stream.write(json.dumps(arrival).encode() + b"\n")
        self._stream.readline()

    def close(self) -> None:
        """Hang up."""
        self._stream.close()


class GatedBackend(Backend):
    """Answers INPUT0 as OUTPUT0, when it may."""

    def hardware(self) -> Hardware:
        """The host."""
        return Hardware(library="gated 1.0", devices=("cpu",))

    def complete(self, source: ModelSource) -> PartialConfig:  # noqa: ARG002 - there is no artifact
        """Nothing: the configuration declares the tensors."""
        return PartialConfig()

    def load(self, source: ModelSource, signature: Signature) -> Model:  # noqa: ARG002 - takes what it declares
        """Wait at the gate, then load."""
        gate = Gate(source, instance=-1)
        gate.pass_through("load", rows=0)
        gate.close()
        return GatedModel(source)


class GatedModel(Model):
    """Opens sessions."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    def open(self, instance: Instance) -> Session:
        """A session with a gate of its own."""
        return GatedSession(Gate(self._source, instance=instance.ordinal))


class GatedSession(TensorSession):
    """Waits at its gate in every execution, warm-up included."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def infer(self, inputs: Tensors) -> Tensors:
        """Wait, then answer."""
        self._gate.pass_through("execute", rows=inputs["INPUT0"].shape[0])
        return {"OUTPUT0": inputs["INPUT0"].copy()}

    def close(self) -> None:
        """Close the gate."""
        self._gate.close()
