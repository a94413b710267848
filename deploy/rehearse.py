"""Do what the Dockerfile says without Docker, in a folder of its own, and serve model_repo from what comes of it.

For a machine without Docker, after a change to the Dockerfile or to the dependencies. This machine stands in for the
base image, and the image's user serves only if root runs this. It downloads some 300 MB, takes minutes, and removes the
folder afterwards. `make models` must have run.

    python3 deploy/rehearse.py

pip's own settings are taken from the environment, and so is TORCH_INDEX, in place of the Dockerfile's.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
MODELS = ROOT / "model_repo"

_START_LIMIT_S = 300.0
_STOP_LIMIT_S = 60.0
_CHECK_INTERVAL_S = 0.5
# What is done to an image's files; the others say how it is run, or nothing that matters without Docker.
_BUILDS = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER"}
_RUNS = {"HEALTHCHECK", "ENTRYPOINT", "CMD", "EXPOSE"}
# Where an absolute path of the image begins. After a letter, a dot, a colon or a slash it is a relative one, or a URL.
_IMAGE_PATH = re.compile(r"(?<![\w.:/])/(?=[a-z])")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile: its name, and the rest of it on one line."""

    name: str
    value: str


def read_instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile. Raises ValueError for one that is not known here."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    instructions = [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]
    if unknown := {each.name for each in instructions} - _BUILDS - _RUNS:
        raise ValueError(f"{DOCKERFILE.name}: rehearse.py does not know {', '.join(sorted(unknown))}")
    return instructions


def read_command(instructions: list[Instruction], name: str) -> list[str]:
    """The command of the last instruction called ``name``, which must be in the form of a list."""
    value = [each.value for each in instructions if each.name == name][-1]
    command: list[str] = json.loads(value[value.index("[") :])
    return command


def read_copy(value: str) -> tuple[str | None, list[str], str]:
    """The stage that a COPY copies from, None for the checkout, its sources and its destination."""
    *sources, destination = value.split()
    if sources[0].startswith("--from="):
        return sources[0].removeprefix("--from="), sources[1:], destination
    return None, sources, destination


class Image:
    """An image as it is made, below the folder ``root``; each earlier stage is in a folder of its own beside it."""

    def __init__(self, base: Path, *, path: str) -> None:
        self._base = base
        self._first_path = path
        self.root = base / "image"
        self.user: int | None = None
        self.variables: dict[str, str] = {}
        self._stage = ""
        self._begin("")

    def apply(self, instruction: Instruction) -> None:
        """Do what the instruction says."""
        value = instruction.value
        match instruction.name:
            case "FROM":
                self._begin(value)
            case "ARG":
                name, _, default = value.partition("=")
                self.variables[name] = os.environ.get(name, default)
            case "ENV":
                for assignment in shlex.split(value):
                    name, _, text = assignment.partition("=")
                    self.variables[name] = string.Template(self.rewrite(text)).substitute(self.variables)
            case "WORKDIR":
                self._folder = self._place(value)
                self._folder.mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(value)
            case "RUN":
                self._run(value)
            case "USER":
                self.user = int(value.partition(":")[0])

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the image, and pip's settings of this machine's."""
        return {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | self.variables

    def rewrite(self, text: str) -> str:
        """``text`` with the image's absolute paths as they are on this machine."""
        return _IMAGE_PATH.sub(f"{self.root}/", text)

    def _run(self, command: str) -> None:
        shell = ["/bin/sh", "-ec", self.rewrite(command)]
        subprocess.run(shell, cwd=self._folder, env=self.environment, check=True)  # noqa: S603

    def _begin(self, value: str) -> None:
        if self._stage:
            self.root.rename(self._base / self._stage)
        self._stage = value.partition(" AS ")[2]
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        self._folder = self.root
        self.variables = {"PATH": self._first_path}

    def _place(self, path: str) -> Path:
        return Path(self.rewrite(path)) if path.startswith("/") else self._folder / path

    def _copy(self, value: str) -> None:
        stage, sources, destination = read_copy(value)
        origin = ROOT if stage is None else self._base / stage
        for each in sources:
            source, target = origin / each.lstrip("/"), self._place(destination)
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".*_cache")
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                target = target / source.name if destination.endswith("/") else target
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


def build(base: Path, instructions: list[Instruction]) -> Image:
    """Make the image. Raises CalledProcessError if a step fails, after it has said why."""
    subprocess.run([sys.executable, "-m", "venv", str(base / "python")], check=True)  # noqa: S603
    image = Image(base, path=f"{base}/python/bin:/usr/bin:/bin")
    for instruction in instructions:
        began_s = time.monotonic()
        image.apply(instruction)
        if instruction.name in _BUILDS:
            say(f"{time.monotonic() - began_s:6.1f} s  {instruction.name} {instruction.value}")
    return image


def rehearse(base: Path) -> None:
    """Build, serve until healthy, stop. Raises RuntimeError if a server comes of it that is not well."""
    instructions = read_instructions(DOCKERFILE.read_text(encoding="utf-8"))
    image = build(base, instructions)
    say(f"the image's own files are {sum(size_of(image.root)) / 1e6:.0f} MB")
    shutil.copytree(MODELS, image.root / "models", ignore=shutil.ignore_patterns("__pycache__"))
    ports = {"PREHEAT_GRPC_PORT": str(free_port()), "PREHEAT_METRICS_PORT": str(free_port())}
    environment = image.environment | ports | {"PREHEAT_HOST": "127.0.0.1"}
    command = read_command(instructions, "ENTRYPOINT") + read_command(instructions, "CMD")
    user = image.user if os.geteuid() == 0 else None
    server = subprocess.Popen(  # noqa: S603
        [image.rewrite(each) for each in command], env=environment, user=user, group=user, cwd=image.root
    )
    try:
        check = [image.rewrite(each) for each in read_command(instructions, "HEALTHCHECK")]
        say(f"healthy after {wait_until_healthy(server, check, environment):.1f} s")
        server.send_signal(signal.SIGTERM)
        if code := server.wait(_STOP_LIMIT_S):
            raise RuntimeError(f"the server ended with code {code}")
    finally:
        server.kill()
        server.wait()


def wait_until_healthy(server: "subprocess.Popen[bytes]", check: list[str], environment: dict[str, str]) -> float:
    """Run the health check until it passes; the seconds that took."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + _START_LIMIT_S and server.poll() is None:
        if subprocess.run(check, env=environment, check=False).returncode == 0:  # noqa: S603
            return time.monotonic() - began_s
        time.sleep(_CHECK_INTERVAL_S)
    raise RuntimeError("the server was never healthy")


def size_of(folder: Path) -> Iterator[int]:
    """The sizes of all files below ``folder``."""
    return (path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def say(text: str) -> None:
    """Tell the person who waits what has happened."""
    print(f"[rehearse] {text}", flush=True)


def main() -> int:
    """Return the exit status."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="preheat-image-") as folder:
        # For the image's user.
        Path(folder).chmod(0o755)
        try:
            rehearse(Path(folder))
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
            say(f"failed: {error}")
            return 1
    say(f"done after {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
