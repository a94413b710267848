"""Generate the Python code of the protocol from the .proto files beside this script.

Run after any change to them, and commit what it writes. With `--check` nothing is written; the exit status is 1 if the
committed code is not what the .proto files give.

There are no gRPC stubs: the transport builds its handlers from the service's descriptor.
"""

import argparse
import importlib.metadata
import sys
import tempfile
import tomllib
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

PROTOS = Path(__file__).resolve().parent
ROOT = PROTOS.parent
SERVER = ROOT / "server"


def main() -> None:
    """Bring the generated code up to date or, with `--check`, exit with 1 and a message if it is not."""
    parser = argparse.ArgumentParser(description="Generate the Python code of the protocol.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the code is out of date")
    check: bool = parser.parse_args().check

    require_pinned_compiler()
    fresh = generate()
    committed = read_code(SERVER)
    drifted = sorted(path for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path))
    if check and drifted:
        listing = "\n".join(f"  {SERVER.name}/{path}" for path in drifted)
        sys.exit(f"Not what the .proto files give:\n{listing}\nRun `python protos/generate.py` and commit the result.")
    for path in drifted:
        replace(SERVER / path, fresh.get(path))


def require_pinned_compiler() -> None:
    """Exit unless the installed grpcio-tools is the one pyproject.toml pins.

    A newer compiler writes code that refuses to run on the oldest protobuf runtime we accept.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = f"grpcio-tools=={importlib.metadata.version('grpcio-tools')}"
    if installed not in project["optional-dependencies"]["dev"]:
        sys.exit(f"{installed} is not the version pinned in pyproject.toml. Run `pip install -e '.[dev]'`.")


def generate() -> dict[Path, bytes]:
    """Compile every .proto file and return the code by its path under the server folder."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as output:
        arguments = ["protoc", f"-I{PROTOS}", f"--python_out={output}", f"--pyi_out={output}", *sources]
        if protoc.main(arguments) != 0:
            sys.exit("protoc failed; its message is above. Nothing was written.")
        return read_code(Path(output))


def read_code(folder: Path) -> dict[Path, bytes]:
    """Return the content of every generated file in `folder`, by its path in there."""
    paths = (path for pattern in ("*_pb2.py", "*_pb2.pyi") for path in folder.rglob(pattern))
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def replace(path: Path, content: bytes | None) -> None:
    """Write `content`, or remove a file that no .proto file gives any more."""
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


if __name__ == "__main__":
    main()
