"""Heat maps side by side on one scale of colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ropewalk.errors import ArgumentError
from ropewalk.report.kit.colours import Scale
from ropewalk.report.kit.html import Markup, element

# With more columns than this the cells are small, and their numbers show below the map, one at a time.
MOST_PRINTED_COLUMNS = 16
# The limits of shares: none and all have the same colours in every map.
SHARES = (0.0, 1.0)


@dataclass(frozen=True)
class HeatMaps:
    """One map a panel, all with the same rows, columns and colours; None is a cell without a value.

    Args:
        title: what the colours show.
        row_title, column_title: what rows and columns are, with units.
        rows, columns: their names.
        panels: name -> rows x columns.
        unit: what a value is counted in.
        low_is_good: whether small values get the bright end of the colours.
        caption: a sentence below.
        limits: values that the colours reach to at the least, so that two figures can have one scale.

    Raises:
        ArgumentError: a panel has another shape.
    """

    title: str
    row_title: str
    rows: Sequence[str]
    column_title: str
    columns: Sequence[str]
    panels: Mapping[str, Sequence[Sequence[float | None]]]
    unit: str
    low_is_good: bool = False
    caption: str = ""
    limits: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, values in self.panels.items():
            if len(values) != len(self.rows) or any(len(row) != len(self.columns) for row in values):
                raise ArgumentError("panels", name, f"must have {len(self.rows)} rows of {len(self.columns)} values")

    def html(self, part: str) -> Markup:
        """The maps, `part` being an id that no other part of the page has."""
        values = [v for rows in self.panels.values() for row in rows for v in row]
        scale = Scale([*self.limits, *values], self.low_is_good)
        panels = [self._panel(name, scale, f"{part}-{i}") for i, name in enumerate(self.panels)]
        return element(
            "figure",
            element("h3", self.title, id=f"{part}-title"),
            element("div", *panels, class_="panels"),
            scale.legend(self.unit),
            element("p", class_="readout", aria_hidden="true"),
            element("figcaption", self.caption) if self.caption else None,
            class_="maps",
            role="group",
            aria_labelledby=f"{part}-title",
        )

    def _panel(self, name: str, scale: Scale, id: str) -> Markup:
        rows = [
            (row, [(scale.colour(v), scale.text(v)) for v in values])
            for row, values in zip(self.rows, self.panels[name], strict=True)
        ]
        is_printed = len(self.columns) <= MOST_PRINTED_COLUMNS
        table = map_table(name, self.row_title, self.column_title, self.columns, rows, is_printed)
        return element("div", element("h4", name, id=id) if len(self.panels) > 1 else None, table)


def map_table(
    name: str,
    row_title: str,
    column_title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    is_printed: bool,
) -> Markup:
    """A table whose cells have colours, in a box that scrolls.

    Args:
        name: what a reader who doesn't see it is told that it is.
        row_title, column_title: what rows and columns are.
        columns: the columns' names.
        rows: (name, a (class, text) for each cell).
        is_printed: whether the texts are seen in the cells; readers who don't see get them always.
    """
    # The corner spans both rows of the head, so that the columns' own title stands above all of them.
    corner = element("th", row_title, scope="col", rowspan=2)
    across = element("th", column_title, scope="colgroup", colspan=len(columns))
    head = [
        element("tr", corner, across),
        element("tr", *(element("th", column, scope="col") for column in columns)),
    ]
    body = [
        element(
            "tr", element("th", row, scope="row"), *(element("td", text, class_=c, tabindex=-1) for c, text in cells)
        )
        for row, cells in rows
    ]
    table = element(
        "table",
        element("thead", *head),
        element("tbody", *body),
        class_="map printed" if is_printed else "map small",
        role="grid",
        aria_label=name,
        data_row=row_title,
        data_column=column_title,
    )
    return element("div", table, class_="scroll")
