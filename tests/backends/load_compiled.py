"""A process that loads one compiled model and says, as JSON, what had to be done for it: FOLDER CACHE ROWS.

``compiled`` are the sources that a compiler was started for, ``traced`` is how many frames dynamo looked at.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch._dynamo.utils
from tests.backends.compiling import buckets, load, rows, serving

COMPILED: list[str] = []


def note_compilations(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: the sources that a compiler is started for."""
    if event == "subprocess.Popen":
        COMPILED.extend(word for word in arguments[1] if str(word).endswith(".cpp"))


def main(folder: str, cache: str, count: str) -> None:
    sys.addaudithook(note_compilations)
    served = load(Path(folder), buckets=buckets(int(count)), cache_path=Path(cache))
    with serving(served) as model:
        answer = model.infer(rows(int(count)))["y"].tolist()
        stated = [[each.kind.value, each.what, each.cached] for each in model.take()]
    traced = torch._dynamo.utils.counters["frames"]["total"]
    sys.stdout.write(json.dumps({"answer": answer, "stated": stated, "compiled": COMPILED, "traced": traced}))


if __name__ == "__main__":
    main(*sys.argv[1:])
