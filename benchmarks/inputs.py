"""The requests that benchmarks send: the first sample that a model of the example repository carries, encoded."""

from pathlib import Path

import grpc
from loadtests.description import describe_model
from loadtests.options import LoadOptions
from loadtests.payloads import make_payloads

INFER = "/inference.GRPCInferenceService/ModelInfer"


def first_request(channel: grpc.Channel, model: Path) -> bytes:
    """The request of one row of ``model``, whose description the server behind ``channel`` is asked for."""
    options = LoadOptions(model.name, "", 1, {}, 1, model / "data" / "perf_analyzer.json", 10.0)
    return make_payloads(describe_model(channel, model.name, ""), options)[0].encoded
