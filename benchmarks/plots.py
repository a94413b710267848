"""Plots as SVG, by matplotlib, which is imported only here and only when there is something to draw."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_INCHES = (8.0, 4.0)


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars: ``groups`` are, by their label, the values of each series. ``name`` is the file's."""

    name: str
    title: str
    unit: str
    groups: Mapping[str, Mapping[str, float]]

    def draw(self, figure: Any) -> None:
        """Draw onto an empty figure."""
        axes = figure.subplots()
        names = list(dict.fromkeys(name for values in self.groups.values() for name in values))
        width = 0.8 / len(names)
        for index, name in enumerate(names):
            places = [place + index * width for place, values in enumerate(self.groups.values()) if name in values]
            axes.bar(places, [values[name] for values in self.groups.values() if name in values], width, label=name)
        axes.set_xticks([place + width * (len(names) - 1) / 2 for place in range(len(self.groups))], list(self.groups))
        axes.margins(y=0.15)
        axes.set_ylabel(self.unit)
        axes.set_title(self.title)
        axes.legend()


@dataclass(frozen=True, slots=True)
class Courses:
    """How values went over the same ``times_s``, or whatever else goes ``across``, one below the other, by label."""

    name: str
    title: str
    times_s: Sequence[float]
    courses: Mapping[str, Sequence[float]]
    across: str = "seconds"

    def draw(self, figure: Any) -> None:
        """Draw onto an empty figure."""
        panels = figure.subplots(len(self.courses), sharex=True, squeeze=False)[:, 0]
        for axes, (label, values) in zip(panels, self.courses.items(), strict=True):
            axes.plot(self.times_s, values)
            axes.set_ylabel(label)
            axes.set_ylim(0, 1.1 * max(values, default=1.0))
        panels[0].set_title(self.title)
        panels[-1].set_xlabel(self.across)


Plot = Bars | Courses


def draw(plots: Sequence[Plot], folder: Path, stem: str) -> list[Path]:
    """Write each plot to a file of its own; which. Raises ImportError without matplotlib."""
    # By name, so that the type checker does not ask for what need not be installed.
    matplotlib = importlib.import_module("matplotlib")
    figures = importlib.import_module("matplotlib.figure")
    # Without it the same plot would be another file each time.
    matplotlib.rcParams["svg.hashsalt"] = stem
    written = []
    for plot in plots:
        figure = figures.Figure(figsize=_INCHES, layout="constrained")
        plot.draw(figure)
        path = folder / f"{stem}-{plot.name}.svg"
        figure.savefig(path, metadata={"Date": None})
        written.append(path)
    return written
