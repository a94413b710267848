"""A process that loads one compiled model and says, as JSON, what had to be compiled: FOLDER CACHE ROWS."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.backends.compiling import buckets, load, rows, serving

COMPILED: list[str] = []


def note_compilations(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: the sources that a compiler is started for."""
    if event == "subprocess.Popen":
        COMPILED.extend(word for word in arguments[1] if str(word).endswith(".cpp"))


def main(folder: str, cache: str, count: str) -> None:
    sys.addaudithook(note_compilations)
    with serving(load(Path(folder), buckets=buckets(int(count)), cache_path=Path(cache))) as model:
        answer = model.infer(rows(int(count)))["y"].tolist()
        stated = [[each.kind.value, each.what, each.cached] for each in model.take()]
    sys.stdout.write(json.dumps({"answer": answer, "stated": stated, "compiled": COMPILED}))


if __name__ == "__main__":
    main(*sys.argv[1:])
