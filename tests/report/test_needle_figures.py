from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tests.report.outcomes import DOPE, PLAIN, RULE, answers, outcome

from ropewalk.report import needle_figures as figures
from ropewalk.report.needle_figures import by_depth, draw_by_depth, draw_final
from ropewalk.tasks.base import NOWHERE


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, *args: object) -> Figure:
    kept: list[Figure] = []
    real = Figure.savefig

    def keep(self: Figure, *args: object, **kwargs: object) -> None:
        kept.append(self)
        real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    draw_by_depth(*args, path)  # type: ignore[arg-type]
    return kept[0]


def test_a_picture_of_the_judgement(tmp_path: Path) -> None:
    path = tmp_path / "new" / "depths.png"
    draw_final(outcome(plain=2.2, rule=0.95, dope=0.60), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 10_000


def test_lines_are_means_by_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"plain": answers(2.0, 3, 2, depths=5), "ntk": answers(0.5, 5, 2, depths=5)}
    figure = drawn(monkeypatch, tmp_path / "a.svg", found, "a title")
    left, right = figure.axes
    assert [list(line.get_xdata()) for line in left.lines] == [[0.0, 0.25, 0.5, 0.75, 1.0]] * 2
    assert list(left.lines[0].get_ydata()) == [1, 1, 1, 0, 0] and list(left.lines[1].get_ydata()) == [1] * 5
    wanted = [2.0 + 0.3 * (i - 2) / 5 for i in range(5)]
    assert list(right.lines[0].get_ydata()) == pytest.approx(wanted)
    assert right.get_ylim()[0] == 0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["plain (n=10)", "ntk (n=10)"]


def test_nothing_is_cut_off_or_drawn_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With names as long as they come, every text lies inside the picture and the legend below the panels."""
    found = {name: answers(1.0, 3, 1) for name in (PLAIN.name, RULE.name, DOPE.name, DOPE.name.replace("5", "10"))}
    figure = drawn(monkeypatch, tmp_path / "a.png", found, "16,384 tokens, noisy setting")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page = figure.bbox
    legend = figure.legends[0].get_window_extent(renderer)
    for axes in figure.axes:
        box = axes.get_tightbbox(renderer)
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert box.y0 >= legend.y1
    assert page.x0 <= legend.x0 and legend.x1 <= page.x1 and legend.y0 >= page.y0
    assert axes.get_window_extent(renderer).height > 0.4 * page.height


def test_more_arms_than_colours_still_draw(tmp_path: Path) -> None:
    arms = len(figures.COLOURS) + 1
    draw_by_depth({str(i): answers(1.0 + i, 3, 1) for i in range(arms)}, "many", tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_what_stood_nowhere_has_no_place_by_depth() -> None:
    found = answers(1.0, 1, prompts=1, depths=2)
    assert list(by_depth([*found, dataclasses.replace(found[0], depth=NOWHERE)])) == [0.0, 1.0]
