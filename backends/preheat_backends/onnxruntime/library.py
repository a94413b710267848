"""ONNX Runtime itself, imported so that it reports to nobody, and its way of saying what failed."""

import os
import re

# The official Linux builds report to their maker over HTTPS unless this is set before the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

__all__ = ["first_line", "ort"]

# What it puts before: "Load model from /models/m/1/model.onnx failed:", and the place in its source, such as
# "/onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(..., const ModelOptions&) ".
_PREAMBLE = re.compile(r"^(Load model from .*? failed: ?)?(/onnxruntime_src/\S+ .*?\) (?=[A-Z]))?")


def first_line(error: Exception) -> str:
    """The first line of what ONNX Runtime says, less the status, the path and the place in its source."""
    text = str(error).strip().partition("\n")[0]
    return _PREAMBLE.sub("", text.rpartition("[ONNXRuntimeError] : ")[2].split(" : ", 2)[-1])
