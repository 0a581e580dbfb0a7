"""Curves of runs in one picture: training loss as a line, validation as marks on it.

    python benchmarks/curves.py results/chorales/curves/*.jsonl --out results/chorales/tried.png

Each file is a run's curve.jsonl under the name that the picture gives it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ropewalk.report.kit.colours import line_style
from ropewalk.report.needle_figures import finish


def main() -> None:
    """Draw them."""
    options = _options()
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    axes: Any = figure.subplots()
    for number, path in enumerate(options.curves):
        points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        style = line_style(number)
        axes.plot(*_series(points, "loss"), linewidth=1.0, alpha=0.7, **(style | {"marker": None}))
        axes.plot(*_series(points, "metric"), linewidth=1.8, label=path.stem, **style)
    finish(axes, "steps", "nats a token: validation marked, training thin")
    axes.set_ylim(options.low, options.high)
    axes.legend(frameon=False, fontsize=8, handlelength=4)
    figure.savefig(options.out, dpi=150)


def _series(points: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(point["step"], point[name]) for point in points if point.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="+", type=Path)
    parser.add_argument("--low", type=float, default=0.3)
    parser.add_argument("--high", type=float, default=2.4)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
