"""How long a model takes from LOADING to READY without and with the compile cache, and how hot READY is.

    python -m benchmarks.cold_start model_repo/minilm_compiled [MODEL_DIR ...]

Each figure is of fresh server processes on an empty or a filled cache. The first request after READY is compared with
the median of those that follow it on the same connection without a pause, and with the median of those that come later
in the very way in which the first one does, after a scrape of the metrics and on a connection of their own: meanwhile
caches go cold and threads to sleep. One JSON line for each model.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from benchmarks.inputs import INFER, first_request
from tests.e2e.scrape import scrape
from tests.e2e.server_process import ServerProcess

_SLOWEST_START_S = 1800.0
_FOLLOWING = 50
_LIKE_FIRST = 10
_SLOW = 1.5


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a server: LOADING to READY, and what requests took.

    The first one, those that followed it at once, and then some that each came as the first one did.
    """

    load_s: float
    first_ms: float
    next_ms: Sequence[float]
    like_first_ms: Sequence[float]

    def over_median(self, milliseconds: float) -> float:
        """As a multiple of the median of the requests that followed the first at once."""
        return milliseconds / statistics.median(self.next_ms)

    @property
    def first_over_like_first(self) -> float:
        """The first request as a multiple of the median of those that came as it did."""
        return self.first_ms / statistics.median(self.like_first_ms)


@dataclass(frozen=True, slots=True)
class Result:
    """The medians of one model's starts, and how often a request took more than 1.5 times the median of its start.

    The latter are of the starts with a filled cache: of the first requests, and as shares of those that followed at
    once and of those that came as the first one did, when nothing is new any more.
    """

    model: str
    cold_s: float
    warm_s: float
    times_faster: float
    cold_starts: int
    warm_starts: int
    first_over_median: float
    worst_first_over_median: float
    slow_first: int
    slow_next_share: float
    like_first_over_median: float
    slow_like_first_share: float
    first_over_like_first: float
    worst_first_over_like_first: float
    slow_first_over_like_first: int


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL_DIR")
    parser.add_argument("--cold", type=int, default=5, help="starts without a cache (default 5)")
    parser.add_argument("--warm", type=int, default=20, help="starts with a filled cache (default 20)")
    arguments = parser.parse_args()
    for model in arguments.models:
        print(json.dumps(asdict(measure(model.resolve(), cold=arguments.cold, warm=arguments.warm))), flush=True)


def measure(model: Path, *, cold: int, warm: int) -> Result:
    """Start servers of ``model`` alone, with empty caches and then with the one that the last of these filled."""
    with tempfile.TemporaryDirectory() as folder:
        repository, cache = Path(folder) / "repository", Path(folder) / "cache"
        shutil.copytree(model, repository / model.name, symlinks=False)
        without = []
        for _ in range(cold):
            shutil.rmtree(cache, ignore_errors=True)
            without.append(start(repository, model, cache))
        with_cache = [start(repository, model, cache) for _ in range(warm)]
    cold_s = statistics.median(each.load_s for each in without)
    warm_s = statistics.median(each.load_s for each in with_cache)
    ratios = [each.over_median(each.first_ms) for each in with_cache]
    following = [each.over_median(milliseconds) for each in with_cache for milliseconds in each.next_ms]
    like_first = [each.over_median(milliseconds) for each in with_cache for milliseconds in each.like_first_ms]
    over_like_first = [each.first_over_like_first for each in with_cache]
    return Result(
        model.name,
        round(cold_s, 2),
        round(warm_s, 2),
        round(cold_s / warm_s, 2),
        cold,
        warm,
        round(statistics.median(ratios), 2),
        round(max(ratios), 2),
        sum(ratio > _SLOW for ratio in ratios),
        _slow_share(following),
        round(statistics.median(like_first), 2),
        _slow_share(like_first),
        round(statistics.median(over_like_first), 2),
        round(max(over_like_first), 2),
        sum(ratio > _SLOW for ratio in over_like_first),
    )


def _slow_share(ratios: Sequence[float]) -> float:
    return round(sum(ratio > _SLOW for ratio in ratios) / len(ratios), 3)


def start(repository: Path, model: Path, cache: Path) -> Start:
    """Start a server, ask it as soon as it is ready, and end it."""
    with ServerProcess(repository, options=["--cache-dir", str(cache)], limit_s=_SLOWEST_START_S) as server:
        load_s = scrape(server).total("nv_model_load_duration_secs", model=model.name)
        first_ms, *next_ms = _ask(server, model, times=1 + _FOLLOWING)
        like_first_ms = []
        for _ in range(_LIKE_FIRST):
            scrape(server)
            like_first_ms += _ask(server, model, times=1)
        cold = scrape(server).total("preheat_cold_compiles_total", model=model.name)
        assert cold == 0, f"{cold} cold compilations"
        server.terminate()
    return Start(load_s, first_ms, next_ms, like_first_ms)


def _ask(server: ServerProcess, model: Path, *, times: int) -> list[float]:
    """What requests take in a row, in milliseconds, on a new connection; making that is not counted."""
    with grpc.insecure_channel(server.grpc_address) as channel:
        request = first_request(channel, model)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        took_ms = []
        for _ in range(times):
            began_s = time.perf_counter()
            call(request)
            took_ms.append((time.perf_counter() - began_s) * 1e3)
    return took_ms


if __name__ == "__main__":
    main()
