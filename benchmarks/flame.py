"""Where a small request's time goes, function by function: a flame graph of a server that is asked for 64 bytes.

    python -m benchmarks.flame OUTPUT.svg --py-spy PROGRAM --perf-analyzer PROGRAM --transport native

py-spy (pip install py-spy) looks at the server from outside, which runs as it would without. The picture is of whatever
holds the interpreter's lock: not of HTTP/2 outside it, nor of waiting. py-spy needs the right to trace processes.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from benchmarks.clients import perf_analyzer
from benchmarks.options import EXAMPLES, add_options, read_options, require
from benchmarks.repositories import add_model
from benchmarks.servers import PreheatServer, stop_servers_when_terminated

# Samples a second. More, and py-spy takes a core for itself.
_RATE = 200
_CONCURRENCY = 8
_TITLE = "Requests of 64 bytes, 8 at a time: what holds the interpreter's lock"


def main() -> None:
    """Ask a server, and have py-spy look on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the picture to write")
    parser.add_argument("--py-spy", default="py-spy", help="the profiler")
    add_options(parser)
    arguments = parser.parse_args()
    options = read_options(arguments)
    profiler, client = require(arguments.py_spy, "--py-spy"), require(options.perf_analyzer, "--perf-analyzer")
    stop_servers_when_terminated()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        add_model(repository, EXAMPLES / "identity", "identity")
        drawn = Path(folder) / "flame.svg"
        with PreheatServer(repository, options=options.transport_options) as server:
            command = [
                profiler,
                "record",
                "--pid",
                str(server.pid),
                "--rate",
                str(_RATE),
                "--nonblocking",
                "--gil",
                "--function",
            ]
            command += [
                "--duration",
                str(round(3 * options.window_s)),
                "--format",
                "flamegraph",
                "--output",
                str(drawn),
            ]
            with subprocess.Popen(command) as profiling:  # noqa: S603 - the operator gives the program
                perf_analyzer(
                    client, server.grpc_address, "identity", concurrency=_CONCURRENCY, window_s=options.window_s,
                    extra=["--shape", "INPUT0:16"],
                )  # fmt: skip
            assert profiling.returncode == 0, f"{' '.join(command)} ended with {profiling.returncode}"
        # The title would be the command, with all of this machine's paths.
        picture = re.sub(r'(<text id="title"[^>]*>)[^<]*', rf"\1{_TITLE}", drawn.read_text(encoding="utf-8"))
        arguments.output.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
