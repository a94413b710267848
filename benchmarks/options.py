"""What the benchmarks of the request path are asked to do. All take the same options, and leave what is not theirs."""

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "model_repo"


@dataclass(frozen=True, slots=True)
class Options:
    """Parsed options. ``triton_command`` empty: Triton is not measured."""

    rounds: int
    window_s: float
    transport: str
    perf_analyzer: str
    h2load: str
    triton_command: str
    triton_address: str
    models: tuple[Path, ...]
    soak_s: float
    sample_s: float
    many: int

    @property
    def transport_options(self) -> list[str]:
        """What the server is started with where transports are not what is compared."""
        return ["--transport", self.transport]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``parser``, with defaults from the environment where a program has to be found."""
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="undisturbed rounds to take the median of (default 5)")
    add("--window-seconds", type=float, default=2.0, help="a third of how long one run measures (default 2)")
    add("--transport", default="auto", help="the server's transport, where they are not compared (default auto)")
    add("--perf-analyzer", default=os.environ.get("PERF_ANALYZER", "perf_analyzer"), help="NVIDIA's perf_analyzer")
    add("--h2load", default=os.environ.get("H2LOAD", "h2load"), help="h2load, which Debian has in nghttp2-client")
    add(
        "--triton-command",
        default=os.environ.get("TRITON_COMMAND", ""),
        metavar="COMMAND",
        help="starts NVIDIA Triton with its Python backend on the repository that is appended (default: no Triton)",
    )
    add(
        "--triton-address",
        default=os.environ.get("TRITON_ADDRESS", "127.0.0.1:8001"),
        metavar="HOST:PORT",
        help="where that Triton serves gRPC (default 127.0.0.1:8001)",
    )
    add(
        "--models",
        type=Path,
        nargs="+",
        default=[EXAMPLES / "minilm_onnx", EXAMPLES / "efficientnet_compiled"],
        metavar="MODEL_DIR",
        help="raw: the models to serve and to run (default minilm_onnx and efficientnet_compiled)",
    )
    add("--soak-seconds", type=float, default=600.0, help="mixed: how long to ask (default 600)")
    add("--sample-seconds", type=float, default=10.0, help="mixed: how long each sample covers (default 10)")
    add("--many", type=int, default=50, help="many: how many models (default 50)")


def read_options(arguments: argparse.Namespace) -> Options:
    """The options that were parsed."""
    return Options(
        rounds=arguments.rounds,
        window_s=arguments.window_seconds,
        transport=arguments.transport,
        perf_analyzer=arguments.perf_analyzer,
        h2load=arguments.h2load,
        triton_command=arguments.triton_command,
        triton_address=arguments.triton_address,
        models=tuple(path.resolve() for path in arguments.models),
        soak_s=arguments.soak_seconds,
        sample_s=arguments.sample_seconds,
        many=arguments.many,
    )


def require(program: str, flag: str) -> str:
    """The path of ``program``; ends the process where there is none, saying how to name it."""
    found = shutil.which(program)
    if found is None:
        raise SystemExit(f"{program} is not there: install it, or say where it is with {flag}")
    return found
