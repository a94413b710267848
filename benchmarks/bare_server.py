"""``preheat serve`` that answers every inference with the same bytes: what a transport costs with no server behind it.

    python -m benchmarks.bare_server MODEL_REPOSITORY [OPTION ...]

It is the most that a server on that transport could reach: nothing is decoded, checked, queued, run or encoded. For
benchmarks.overhead, which starts it as a process; only for ``identity`` and rows of 64 bytes.
"""

import sys
import time
from typing import Any

import numpy as np

from preheat.cli import main as preheat
from preheat.engine import Engine
from preheat.messages import InferResponse, OutputTensor
from preheat.protocol.codec import encode_response
from preheat.telemetry.events import BatchExecuted
from preheat.tensors import DataType
from preheat.transport import grpcio, native
from preheat.transport.methods import Respond

_ANSWER = encode_response(
    InferResponse("identity", "1", "", (OutputTensor("OUTPUT0", DataType.FP32, np.zeros((1, 16), np.float32)),))
)


def _answer_at_once(engine: Engine, payload: bytes, *, respond: Respond, **_: Any) -> None:  # noqa: ARG001
    """In the place of :func:`preheat.transport.methods.infer`."""
    respond(_ANSWER)
    # perf_analyzer does not believe in requests that the server has not counted.
    now_s = time.monotonic()
    engine._statistics.observe(BatchExecuted("identity", 1, 1, (now_s,), now_s, now_s, now_s, now_s))


if __name__ == "__main__":
    for transport in (grpcio, native):
        vars(transport)["infer"] = _answer_at_once
    sys.exit(preheat(["serve", *sys.argv[1:]]))
