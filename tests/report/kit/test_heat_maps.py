from __future__ import annotations

import pytest
from tests.report.pages import parsed

from ropewalk.errors import ArgumentError
from ropewalk.report.kit.colours import STEPS
from ropewalk.report.kit.heat_maps import HeatMaps


def maps(columns: int = 3, **changed: object) -> HeatMaps:
    values = [[float(i + 10 * j) for i in range(columns)] for j in range(2)]
    given: dict[str, object] = {
        "title": "Right",
        "row_title": "tokens",
        "rows": ("8,192", "16,384"),
        "column_title": "depth",
        "columns": [str(i) for i in range(columns)],
        "panels": {"plain": values, "rule": [[100.0, *row[1:]] for row in values]},
        "unit": "share",
    }
    return HeatMaps(**(given | changed))  # type: ignore[arg-type]


def test_every_number_has_its_row_and_column_and_all_panels_one_scale() -> None:
    (figure,) = parsed(maps().html("part-1")).children
    tables = figure.all("table")
    assert [t.attributes["aria-label"] for t in tables] == ["plain", "rule"]
    heads = [cell.text for cell in tables[0].all("thead")[0].all("th")]
    assert heads == ["tokens", "depth", "0", "1", "2"]
    rows = [[c.text for c in row.children] for row in tables[0].all("tbody")[0].all("tr")]
    assert rows == [["8,192", "0", "1", "2"], ["16,384", "10", "11", "12"]]
    first, second = (t.all("td")[0].attributes["class"] for t in tables)
    assert (first, second) == ("c0", f"c{STEPS - 1}")
    assert figure.all("p", "legend")[0].text.startswith("0100share")


def test_limits_give_maps_of_two_figures_one_scale() -> None:
    (figure,) = parsed(maps(panels={"plain": [[0.0] * 3, [50.0] * 3]}, limits=(0.0, 100.0)).html("part-1")).children
    assert figure.all("td")[3].attributes["class"] == f"c{STEPS // 2}"
    assert figure.all("p", "legend")[0].text.startswith("0100share")


def test_low_is_good_turns_the_colours_round() -> None:
    (figure,) = parsed(maps(low_is_good=True).html("part-1")).children
    assert [t.all("td")[0].attributes["class"] for t in figure.all("table")] == [f"c{STEPS - 1}", "c0"]


def test_many_columns_make_small_cells_that_still_hold_their_numbers() -> None:
    for columns, kind in ((16, "map printed"), (17, "map small")):
        (figure,) = parsed(maps(columns).html("part-1")).children
        table = figure.all("table")[0]
        assert table.attributes["class"] == kind and table.all("td")[1].text == "1"


def test_a_missing_value_is_seen_as_such() -> None:
    (figure,) = parsed(maps(panels={"plain": [[None, 1.0, 2.0], [0.0, 1.0, 2.0]]}).html("part-1")).children
    cell = figure.all("td")[0]
    assert (cell.text, cell.attributes["class"]) == ("–", "missing")
    assert figure.all("h4") == []  # a single panel needs no name of its own


@pytest.mark.parametrize("values", [[[1.0, 2.0, 3.0]], [[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0, 3.0], [1.0]]])
def test_a_panel_of_another_shape_is_refused(values: list[list[float]]) -> None:
    with pytest.raises(ArgumentError, match=r"panels='rule'.*2 rows of 3 values"):
        maps(panels={"rule": values})
