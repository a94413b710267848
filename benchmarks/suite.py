"""All benchmarks of the request path, into a page, a JSON file and plots.

    make bench ARGS="--rounds 5 --triton-command COMMAND --triton-address 127.0.0.1:8001"

Needs perf_analyzer and h2load, and a machine that does nothing else. What was measured is written after each of the
benchmarks, so that what comes later cannot lose it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import batching, many, mixed, overhead, raw, stages, threads
from benchmarks.options import Options, add_options, read_options
from benchmarks.report import Section, write_report
from benchmarks.servers import stop_servers_when_terminated

_BENCHMARKS: Mapping[str, Callable[[Options], Section]] = {
    "overhead": overhead.measure,
    "stages": stages.measure,
    "raw": raw.measure,
    "batching": batching.measure,
    "threads": threads.measure,
    "many": many.measure,
    "mixed": mixed.measure,
}
_SHOWN = ("rounds", "window_seconds", "transport", "soak_seconds", "sample_seconds", "many")
_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "request-path"


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=_BENCHMARKS, default=list(_BENCHMARKS), help="which to run")
    parser.add_argument(
        "--output",
        type=Path,
        default=_PAGE,
        help="the page to write, without an ending (default docs/benchmarks/request-path)",
    )
    add_options(parser)
    arguments = parser.parse_args()
    options = read_options(arguments)
    stop_servers_when_terminated()
    sections: list[Section] = []
    for name in arguments.only:
        print(f"== {name}", file=sys.stderr, flush=True)
        sections.append(_BENCHMARKS[name](options))
        write_report(sections, arguments.output, shown_command(arguments))
    raise SystemExit(any(section.failures for section in sections))


def shown_command(arguments: argparse.Namespace) -> str:
    """The command as a page shows it: what decides the figures, and nothing of where things are on this machine."""
    words = ["python -m benchmarks.suite --only", *arguments.only]
    words += [f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in _SHOWN]
    words += ["--models", *(path.name for path in arguments.models)]
    if arguments.triton_command:
        words.append("--triton-command COMMAND")
    return " ".join(words)


if __name__ == "__main__":
    main()
