"""A map of heads, layer by head, from which each head's own charts open."""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.report.kit.colours import Scale
from ropewalk.report.kit.heat_maps import MOST_PRINTED_COLUMNS, map_table
from ropewalk.report.kit.html import Markup, data_block, element, joined, raw

KINDS = ("line", "bars", "heat")
# The largest value of a chart becomes this one in half precision, well below the type's largest, 65,504.
_LARGEST = 32768.0
_MISSING = 255


@dataclass(frozen=True, eq=False)
class HeadChart:
    """One chart that every head has.

    Args:
        title: what it shows.
        kind: "line", "bars" or "heat".
        values: (layers, heads, n) or (layers, heads, series, n); of a heat map (layers, heads, rows, columns).
            What isn't finite is a gap.
        x: the n places (or columns) on the horizontal axis; 0, 1, ... by default.
        series: names of the series, or of a heat map's rows.
        x_title: title of the horizontal axis, with its unit.
        y_title: title of the vertical axis: what lines and bars measure, or what a heat map's rows are.
        caption: a sentence below.

    Raises:
        ArgumentError: an unknown kind, or values, x and series that don't fit each other.
    """

    title: str
    kind: str
    values: Tensor
    x: Sequence[float] | None = None
    series: Sequence[str] = ()
    x_title: str = ""
    y_title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind", self.kind, KINDS)
        shape = tuple(self.values.shape)
        if len(shape) not in ((4,) if self.kind == "heat" else (3, 4)) or 0 in shape:
            wanted = "(layers, heads, rows, columns)" if self.kind == "heat" else "(layers, heads, n) or one more"
            raise ArgumentError("values", shape, f"must have the shape {wanted}")
        if self.x is not None and len(self.x) != shape[-1]:
            raise ArgumentError("x", len(self.x), f"must have a place for each of {shape[-1]} values")
        if self.series and (len(shape) == 3 or len(self.series) != shape[2]):
            raise ArgumentError("series", list(self.series), f"must name the series of values of shape {shape}")

    def described(self) -> dict[str, Any]:
        """All but the values, as the page's script reads it."""
        rows = self.values.shape[2] if self.values.ndim == 4 else 1
        return {
            "title": self.title,
            "kind": self.kind,
            "rows": rows,
            "n": self.values.shape[-1],
            "x": None if self.x is None else [float(value) for value in self.x],
            "series": list(self.series),
            "xTitle": self.x_title,
            "yTitle": self.y_title,
            "caption": self.caption,
        }

    def packed(self) -> tuple[dict[str, Any], str]:
        """What turns the numbers back into values, and the numbers: as much base64 text for each head, one after the
        other, so that the script can read one head alone.

        Lines and bars are in half precision, times `unit`. Heat maps are bytes from each head's lowest value, in
        `low`, to its highest, in `high`; 255 is a gap.
        """
        values = self.values.detach().to("cpu", torch.float64).flatten(0, 1).flatten(1)
        known = values.isfinite()
        if self.kind == "heat":
            low = torch.where(known, values, math.inf).amin(-1)
            high = torch.where(known, values, -math.inf).amax(-1)
            low, high = (torch.where(known.any(-1), bound, 0.0) for bound in (low, high))
            width = torch.where(high > low, high - low, 1.0)
            steps = ((values - low[:, None]) / width[:, None] * (_MISSING - 1)).round()
            stored = torch.where(known, steps, float(_MISSING)).to(torch.uint8)
            return {"low": _short(low), "high": _short(high)}, _base64(stored)
        largest = float(values[known].abs().max()) if known.any() else 0.0
        unit = largest / _LARGEST if largest > 0 else 1.0
        stored = torch.where(known, values / unit, math.nan).to(torch.float16)
        return {"unit": unit}, _base64(stored)


@dataclass(frozen=True, eq=False)
class HeadMap:
    """Layer by head, coloured by a score to choose; a click or Enter opens a head's charts.

    Args:
        title: what it shows.
        layers: the model's number of each row.
        num_heads: columns.
        scores: name -> (layers, heads); the first is shown at the start.
        charts: drawn for a head when it is opened.
        marked: (layer number, head) pairs that get a dot.
        caption: a sentence below; should say what the dots mark.

    Raises:
        ArgumentError: no score, or scores, charts or marks that don't fit the layers and heads.
    """

    title: str
    layers: Sequence[int]
    num_heads: int
    scores: Mapping[str, Sequence[Sequence[float]]]
    charts: Sequence[HeadChart] = ()
    marked: Collection[tuple[int, int]] = ()
    caption: str = ""

    def __post_init__(self) -> None:
        size = (len(self.layers), self.num_heads)
        if not self.scores:
            raise ArgumentError("scores", {}, "must hold at least one score to colour the heads by")
        for name, values in self.scores.items():
            if (len(values), *{len(row) for row in values}) != size:
                raise ArgumentError("scores", name, f"must have {size[0]} layers of {size[1]} heads")
        for chart in self.charts:
            if tuple(chart.values.shape[:2]) != size:
                raise ArgumentError("charts", chart.title, f"must have {size[0]} layers of {size[1]} heads")
        for layer, head in self.marked:
            if layer not in self.layers or not 0 <= head < self.num_heads:
                raise ArgumentError("marked", (layer, head), "isn't a layer and head of this map")

    def html(self, part: str) -> Markup:
        """The map, `part` being an id that no other part of the page has."""
        name = next(iter(self.scores))
        first = _rounded(self.scores[name])
        scale = _scale(first, self._is_printed)
        options = [element("option", score) for score in self.scores]
        choice = element("select", *options, disabled=True)
        controls = element("label", "Coloured by ", choice) if len(self.scores) > 1 else name
        dot = [element("span", element("i", class_="dot"), " marked", class_="note")] if self.marked else []
        map_ = element(
            "div",
            self._table(scale, first),
            scale.legend("", *dot),
            element("p", class_="readout", aria_hidden="true"),
        )
        opened = element("div", class_="opened", hidden=True, role="region", aria_label="The opened head")
        return element(
            "figure",
            element("h3", self.title, id=f"{part}-title"),
            element("figcaption", self.caption) if self.caption else None,
            element("p", controls, class_="controls"),
            element("div", map_, opened, class_="split"),
            *self._data(),
            class_="heads",
            role="group",
            aria_labelledby=f"{part}-title",
        )

    @property
    def _is_printed(self) -> bool:
        return self.num_heads <= MOST_PRINTED_COLUMNS

    def _table(self, scale: Scale, values: Sequence[Sequence[float | None]]) -> Markup:
        rows = [
            (
                str(layer),
                [
                    (scale.colour(v) + (" marked" if (layer, head) in self.marked else ""), scale.text(v))
                    for head, v in enumerate(row)
                ],
            )
            for layer, row in zip(self.layers, values, strict=True)
        ]
        columns = [str(head) for head in range(self.num_heads)]
        return map_table(self.title, "layer", "head", columns, rows, self._is_printed)

    def _data(self) -> list[Markup]:
        """Scores and charts for the script."""
        scores = []
        for name, values in self.scores.items():
            rows = _rounded(values)
            decimals = _scale(rows, self._is_printed).decimals
            scores.append({"name": name, "decimals": decimals, "values": [v for row in rows for v in row]})
        charts, numbers = [], []
        for chart in self.charts:
            packing, text = chart.packed()
            charts.append(chart.described() | packing)
            numbers.append(raw("script", text, type="text/plain", class_="numbers"))
        found = {"layers": list(self.layers), "heads": self.num_heads, "scores": scores, "charts": charts}
        return [data_block(found, class_="data"), joined(*numbers)]


def _scale(rows: Sequence[Sequence[float | None]], is_printed: bool) -> Scale:
    # Where numbers show one at a time there is room for what tells neighbours in rank apart.
    return Scale((v for row in rows for v in row), more_decimals=0 if is_printed else 2)


def _base64(rows: Tensor) -> str:
    numbers = rows.numpy()
    numbers = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False)
    return "".join(base64.b64encode(row.tobytes()).decode("ascii") for row in numbers)


def _short(values: Tensor) -> list[float]:
    return [float(f"{v:.6g}") for v in values.tolist()]


def _rounded(rows: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """A score with the digits that the script gets; None where it isn't finite."""
    return [[float(f"{v:.9g}") if math.isfinite(v) else None for v in row] for row in rows]
