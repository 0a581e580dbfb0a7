"""The table, the page and the picture of a comparison."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.training.tiny import Echo, recipe

from ropewalk.report.training import _styles, draw_curves, header, rows, title
from ropewalk.training.compare import Comparison
from ropewalk.training.presets import NAMES
from ropewalk.training.runner import Result


@dataclasses.dataclass(frozen=True)
class Nats(Echo):
    metric = "nll"


def result(name: str, seed: int, value: float | None, diverged: int | None = None) -> Result:
    return Result(name, seed, "accuracy", value, {"sequences": 200}, 10, 1234, 0, 60.0 + seed, 0.012, diverged)


def nats(name: str, seed: int, value: float) -> Result:
    return dataclasses.replace(result(name, seed, value), metric="nll")


def comparison(out: Path, names: tuple[str, ...] = ("rope", "pope", "nope")) -> Comparison:
    results = (result("rope", 0, 0.5), result("pope", 0, 0.9), result("rope", 1, 0.25), result("pope", 1, None, 7))
    return Comparison(recipe(), Echo(), names, 2, out, results)


def with_curves(found: Comparison) -> Comparison:
    for r in found.results:
        place = found.out / r.encoding / f"seed-{r.seed}"
        place.mkdir(parents=True)
        points = [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.9, "metric": 0.1 * r.seed + 0.2}]
        points += [{"step": 8, "loss": 0.8, "metric": 0.4}, {"step": 10, "loss": None, "metric": None}]
        (place / "curve.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points))
    return found


def test_every_seed_is_in_the_table_in_the_order_asked_for(tmp_path: Path) -> None:
    found = comparison(tmp_path)
    assert header(found)[:4] == ("encoding", "seed 0", "seed 1", "mean")
    assert [row[:4] for row in rows(found)] == [
        # Wilson's of 100, 50 and 180 of 200; Student's of two values 0.25 apart, 12.706 times half of that.
        ("rope", "50.0% [43.1, 56.9]", "25.0% [19.5, 31.4]", "37.5% [0.0, 100.0]"),
        ("pope", "90.0% [85.1, 93.4]", "not a number (diverged at 7)", "not a number"),
    ]
    assert rows(found)[0][4:] == ("1,234", "60", "1.2%")
    assert all(len(row) == len(header(found)) for row in rows(found))
    assert "10 steps of 4" in title(found) and "share of sequences" in title(found)


def test_a_run_that_isnt_finished_has_a_dash_and_nats_are_nats(tmp_path: Path) -> None:
    found = Comparison(recipe(), Nats(), ("rope",), 3, tmp_path, (nats("rope", 1, 1.23456),))
    assert rows(found)[0][:5] == ("rope", "–", "1.2346", "–", "1.2346")
    assert title(found).endswith("nats a labelled token, test set")


def test_the_mean_of_seeds_has_students_interval(tmp_path: Path) -> None:
    found = Comparison(
        recipe(), Nats(), ("rope",), 3, tmp_path, tuple(nats("rope", i, 1.2 + 0.1 * i) for i in range(3))
    )
    # 1.3 with a standard error of 0.1 / sqrt(3), times 4.303, NIST's quantile at 2 degrees of freedom.
    assert rows(found)[0][:5] == ("rope", "1.2000", "1.3000", "1.4000", "1.3000 [1.0516, 1.5484]")
    low, high = found.to_dict()["intervals"]["rope"]
    assert (low, high) == (pytest.approx(1.0516, abs=1e-4), pytest.approx(1.5484, abs=1e-4))


@pytest.mark.parametrize(
    ("task", "results", "said"),
    [
        (
            Echo(),
            (result("rope", 0, 0.5), result("rope", 1, 0.25)),
            "of a run Wilson's over its 200 test sequences, of a mean Student's t over seeds, cut off at 0 and 100 %",
        ),
        (
            Echo(),
            (result("rope", 0, 0.5),),
            "test set; brackets: 95 % intervals, of a run Wilson's over its 200 test sequences",
        ),
        (
            Nats(),
            (nats("rope", 0, 2.0), nats("rope", 1, 2.1)),
            "; brackets: 95 % intervals, of a mean Student's t over seeds",
        ),
        (Echo(), (), "test set"),
        (Echo(), (result("rope", 0, None),), "test set"),
    ],
)
def test_the_title_says_what_the_brackets_are(
    task: Echo, results: tuple[Result, ...], said: str, tmp_path: Path
) -> None:
    assert title(Comparison(recipe(), task, ("rope",), 2, tmp_path, results)).endswith(said)


def test_styles_differ_also_in_grey() -> None:
    found = list(_styles())[: len(NAMES)]
    assert len(set(found)) == len(NAMES) and len({dashes for dashes, _ in found[:6]}) == 6
    assert len({colour for _, colour in found[:6]}) == 6


def test_the_picture_has_a_line_a_seed_and_a_name_an_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), real(self, *a, **k))[1])
    draw_curves(with_curves(comparison(tmp_path)), tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    lines = axes.get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[4, 8]] * 4
    assert [list(line.get_ydata()) for line in lines] == [[0.2, 0.4], pytest.approx([0.3, 0.4])] * 2
    assert axes.get_legend_handles_labels()[1] == ["rope", "pope"]
    looks = [(line.get_color(), line.get_linestyle()) for line in lines]
    assert looks[0] == looks[1] != looks[2] == looks[3] and looks[0][1] != looks[2][1]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
