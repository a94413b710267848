"""What was measured, as a page, as JSON and as plots, and what it was measured on."""

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import Options, add_options, read_options
from benchmarks.plots import Plot, draw

Cell = str | int | float | None
Row = Mapping[str, Cell]

_PACKAGES = ("preheat", "grpcio", "pygrpc-native", "numpy", "uvloop", "protobuf")


@dataclass(frozen=True, slots=True)
class Section:
    """What one benchmark found. All ``rows`` have the same columns.

    ``series`` is for JSON and plots only. ``versions`` are of servers that it asked. ``failures`` are what must not be.
    """

    title: str
    about: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    series: Sequence[Row] = ()
    versions: Sequence[str] = ()
    failures: Sequence[str] = ()

    @property
    def markdown(self) -> str:
        """As part of a page."""
        parts = [f"## {self.title}", self.about]
        if self.rows:
            parts.append(_table(self.rows))
        parts += [f"**{failure}**" for failure in self.failures]
        parts += self.notes
        return "\n\n".join(parts) + "\n"

    @property
    def as_json(self) -> dict[str, object]:
        """What programs read."""
        return {
            "title": self.title,
            "rows": list(self.rows),
            "series": list(self.series),
            "notes": list(self.notes),
            "failures": list(self.failures),
        }


def run_alone(document: str | None, measure: Callable[[Options], Section]) -> None:
    """The main function of one benchmark: measure, print, and fail where something was wrong."""
    # Here, for it brings a client, which cannot be in one process with the server: a page can, in the tests of pages.
    from benchmarks.servers import stop_servers_when_terminated

    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    stop_servers_when_terminated()
    section = measure(read_options(arguments))
    print(json.dumps(section.as_json) if arguments.json else section.markdown)
    raise SystemExit(bool(section.failures))


def write_report(
    sections: Sequence[Section], page: Path, command: str, more_facts: Mapping[str, str] | None = None
) -> None:
    """Write the page, the JSON and the plots, whose names all begin with that of ``page``, which has no ending."""
    folder, stem = page.parent, page.name
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine_facts(sections) | dict(more_facts or {}) | {"command": command}
    document = {"facts": facts, "sections": [section.as_json for section in sections]}
    (folder / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    pictures = _pictures(sections, page)
    parts = [f"# {stem.replace('-', ' ').capitalize()}\n", *(f"- {name}: {text}" for name, text in facts.items()), ""]
    for section in sections:
        parts.append(section.markdown)
        parts += [f"![{plot.title}]({pictures[plot.name]})\n" for plot in section.plots if plot.name in pictures]
    (folder / f"{stem}.md").write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def machine_facts(sections: Sequence[Section]) -> dict[str, str]:
    """When, on what and with what it was measured."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    servers = dict.fromkeys(version for section in sections for version in section.versions)
    packages = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores ({_processor()}), {memory_bytes / 2**30:.0f} GiB of memory",
        "kernel": f"Linux {platform.release().partition('-')[0]}",
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
        "servers": ", ".join(servers),
    }


def _pictures(sections: Sequence[Section], page: Path) -> dict[str, str]:
    """The files of the plots, by the plots' names; none without matplotlib."""
    plots = [plot for section in sections for plot in section.plots]
    try:
        files = draw(plots, page.parent, page.name)
    except ImportError as error:
        print(f"no plots: {error}; pip install matplotlib", file=sys.stderr)
        return {}
    return {plot.name: file.name for plot, file in zip(plots, files, strict=True)}


def _table(rows: Sequence[Row]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int | float) else value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
