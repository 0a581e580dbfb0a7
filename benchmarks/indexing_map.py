"""One page over all sizes at which indirect indexing was trained: every seed of every encoding, finished or not.

    python benchmarks/indexing_map.py runs/* --head results/indexing/head.md --out results/indexing.md

Each folder is the OUT of one or several `ropewalk train --task indexing` of one size. Beside the page comes a picture:
accuracy on validation strings against steps, a panel a size, a line a seed; and runs.jsonl, a line a run: what was
trained, its curve on validation strings and its figures on the test set.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ropewalk.evaluation.provenance import spelled
from ropewalk.report.kit.colours import line_style
from ropewalk.report.kit.markdown import table_lines
from ropewalk.report.needle_figures import finish
from ropewalk.training.run_folder import RunFolder

HEADER = (
    "strings",
    "model, first weights",
    "batch, rate, steps",
    "encoding",
    "test accuracy, each seed",
    "steps to 50 %",
    "to 95 %",
    "minutes",
)
REACHED = 0.5, 0.95


@dataclasses.dataclass(frozen=True)
class Run:
    """One encoding with one seed."""

    encoding: str
    seed: int
    about: dict[str, Any]
    curve: list[dict[str, Any]]
    result: dict[str, Any] | None

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and accuracies on validation strings."""
        return [(point["step"], point["metric"]) for point in self.curve]

    @property
    def minutes(self) -> str:
        """What the run has taken, evaluation and checkpoints included."""
        return f"{self.curve[-1]['seconds'] / 60:.0f}" if self.curve else "–"

    @property
    def accuracy(self) -> str:
        """On the test set, or how far the run has come."""
        if self.result is not None:
            value = self.result["value"]
            return "not a number" if value is None else f"{value:.1%}"
        if not self.points:
            return "–"
        return f"({self.points[-1][1]:.1%} on validation after {self.points[-1][0]:,})"

    def first(self, share: float) -> str:
        """The first measured step with that accuracy on validation strings."""
        return next((f"{step:,}" for step, value in self.points if value >= share), "–")


def main() -> None:
    """Write the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--head", type=Path, help="a Markdown file that goes before the table")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    sizes = {folder.name: runs for folder in options.folders if (runs := _runs(folder))}
    if not sizes:
        parser.error("no folder holds a run: give the OUT folders of ropewalk train")
    lines = options.head.read_text(encoding="utf-8").splitlines() if options.head else []
    lines += ["", *table_lines(HEADER, [row for runs in sizes.values() for row in _rows(runs)])]
    picture = options.out.with_suffix("") / "curves.png"
    _draw(list(sizes.values()), picture)
    records = [dataclasses.asdict(run) for runs in sizes.values() for run in runs]
    (picture.parent / "runs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines += ["", f"Each run: [runs.jsonl]({picture.parent.name}/runs.jsonl). {'; '.join(_made_with(sizes.values()))}."]
    lines += ["", f"![Accuracy on validation strings against steps]({picture.relative_to(options.out.parent)})"]
    options.out.write_text("\n".join(lines).lstrip("\n") + "\n", encoding="utf-8")


def _runs(folder: Path) -> list[Run]:
    found = []
    for path in sorted(folder.glob("*/seed-*/run.json")):
        run = RunFolder(path.parent)
        about = json.loads(path.read_text(encoding="utf-8"))
        curve = [point for point in run.curve() if point.get("metric") is not None]
        found.append(Run(path.parts[-3], about["seed"], about, curve, run.result()))
    return found


def _made_with(sizes: Iterable[Sequence[Run]]) -> list[str]:
    """Versions and machines of all finished runs, each once."""
    results = [run.result for runs in sizes for run in runs if run.result is not None]
    return list(dict.fromkeys([*(spelled(r["versions"]) for r in results), *(r["machine"] for r in results)]))


def _rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    rows = []
    for encoding in dict.fromkeys(run.encoding for run in runs):
        seeds = [run for run in runs if run.encoding == encoding]
        task, recipe = seeds[0].about["task"], seeds[0].about["recipe"]
        size = recipe["model"]
        rows.append(
            (
                f"{task['least']} to {task['most']} of {task['letters']}, shifts to {task['shift']}",
                f"{size['layers']} x {size['hidden']}, {size['heads']} heads; {size['initial']:g}",
                f"{recipe['batch']}, {recipe['learning_rate']:g}, {recipe['steps']:,}",
                encoding,
                ", ".join(run.accuracy for run in seeds),
                *(", ".join(run.first(share) for run in seeds) for share in REACHED),
                ", ".join(run.minutes for run in seeds),
            )
        )
    return rows


def _draw(sizes: Sequence[Sequence[Run]], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(run.encoding for runs in sizes for run in runs))
    across = min(3, len(sizes))
    down = -(-len(sizes) // across)
    figure = Figure(figsize=(4.2 * across, 3.0 * down + 0.5), layout="constrained")
    panels: Any = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(sizes) :]:
        axes.set_visible(False)
    for axes, runs in zip(panels.flat, sizes, strict=False):
        for run in runs:
            style = line_style(names.index(run.encoding)) | {"markersize": 3, "linewidth": 1.2}
            axes.plot(*zip(*run.points, strict=True) if run.points else ([], []), label=run.encoding, **style)
        strings, size, schedule = _rows(runs)[0][:3]
        axes.set_title(f"{strings}\n{size}; {schedule}", fontsize=8)
        axes.set_ylim(-0.03, 1.03)
        finish(axes, "steps", "accuracy, validation")
    handles = {
        label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
