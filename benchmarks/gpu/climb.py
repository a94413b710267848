"""One rung with one network, in a process of its own: a job as JSON on the command line, what was found as JSON."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch._inductor
from benchmarks.gpu.jobs import Found, Job
from benchmarks.gpu.networks import TINY, VIT_H, build
from benchmarks.gpu.rungs import BY_NAME, Rung
from torch import nn

# CUDA graphs are warmed by the first call, recorded by the second and replayed from the third on.
_WARM_CALLS = 4
Call: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    """Do the job, and print what was found as the last line."""
    job = Job(**json.loads(sys.argv[1]))
    try:
        found = climb(job)
    except Exception as exc:
        lines = str(exc).strip().splitlines()
        found = Found(failure=f"{type(exc).__name__}: {lines[0] if lines else ''}")
    print(json.dumps(asdict(found)))


def climb(job: Job) -> Found:
    """Run the job's rung. Raises whatever torch raises."""
    rung, device = BY_NAME[job.rung], torch.device(job.device)
    network, x = build(job.network, TINY if job.tiny else VIT_H, job.batch)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = _reference(network, x, device)
        started_s = time.perf_counter()
        x = x.to(device, torch.bfloat16 if rung.bf16 else None)
        call = prepare(rung, network, x, Path(folder))
        for _ in range(_WARM_CALLS):
            answer = call(x).float().cpu()
        ready_s = time.perf_counter() - started_s
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times_ms = time_on_gpu(call, x, job.repeats) if device.type == "cuda" else time_on_host(call, x, job.repeats)
        peak_mib = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    cosine, sqnr_db = agreement(answer, expected)
    return Found(statistics.median(times_ms), ready_s, cosine, sqnr_db, peak_mib)


def prepare(rung: Rung, network: nn.Module, x: torch.Tensor, folder: Path) -> Call:
    """``network``, which is on the host in fp32, as ``rung`` has it, for inputs like ``x``, on the device of ``x``."""
    _use_tf32(enabled=rung.tf32)
    network.to(x.dtype)
    if rung.quantization:
        _quantize(network, rung.quantization, x.device)
    network.to(x.device)
    if rung.packaged:
        return _package(network, x, folder)
    if rung.compiled:
        options = _options(rung, x.device)
        compiled: Call = torch.compile(network, fullgraph=True, dynamic=False, options=options)
        return compiled
    return network


def time_on_gpu(call: Call, x: torch.Tensor, repeats: int) -> list[float]:
    """Milliseconds of each of ``repeats`` calls, as the GPU counts them."""
    spans = []
    for _ in range(repeats):
        start = _record_event()
        call(x)
        spans.append((start, _record_event()))
    torch.cuda.synchronize(x.device)
    return [start.elapsed_time(end) for start, end in spans]


def _record_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def time_on_host(call: Call, x: torch.Tensor, repeats: int) -> list[float]:
    """Milliseconds of each of ``repeats`` calls, off a GPU."""
    times_ms = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        call(x)
        times_ms.append(1000 * (time.perf_counter() - started_s))
    return times_ms


def agreement(answer: torch.Tensor, expected: torch.Tensor) -> tuple[float, float | None]:
    """Cosine and signal-to-quantization-noise ratio in dB; the latter None where there is no noise."""
    ours, theirs = answer.double().flatten(), expected.double().flatten()
    cosine = float(torch.dot(ours, theirs) / (ours.norm() * theirs.norm()))
    noise = float((ours - theirs).norm())
    return cosine, 20 * float(torch.log10(theirs.norm() / noise)) if noise else None


def _reference(network: nn.Module, x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What fp32 answers, row by row, so that it fits beside nothing else; leaves the device as it was."""
    _use_tf32(enabled=False)
    network.to(device)
    answers = [network(row[None].to(device)).cpu() for row in x]
    network.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return torch.cat(answers)


def _use_tf32(*, enabled: bool) -> None:
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


def _quantize(network: nn.Module, quantization: str, device: torch.device) -> None:
    """As the backend torchao does it for a model that is compiled."""
    from preheat_backends.torchao.quantization import Plan, Quantization, quantize

    quantize(network, Plan(Quantization(quantization), device, compiled=True), model=quantization)


def _options(rung: Rung, device: torch.device) -> dict[str, Any]:
    """A mode as the options that it stands for: torch takes one or the other."""
    mode: dict[str, Any] = torch._inductor.list_mode_options(rung.mode) if device.type == "cuda" else {}
    return {**mode, **rung.inductor}


def _package(network: nn.Module, x: torch.Tensor, folder: Path) -> Call:
    path = str(folder / "network.pt2")
    program = torch.export.export(network, (x,), strict=False)
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    loaded: Call = torch._inductor.aoti_load_package(path)
    return loaded


if __name__ == "__main__":
    main()
