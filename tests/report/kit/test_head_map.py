from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.report.pages import charts, head_map, parsed

from ropewalk.errors import ArgumentError
from ropewalk.report.kit.head_map import HeadChart, HeadMap


def block(text: str, head: int, count: int, bytes_each: int) -> bytes:
    """A head's bytes, cut out of the text as the page's script does it."""
    length = 4 * math.ceil(count * bytes_each / 3)
    return base64.b64decode(text[head * length : (head + 1) * length])


@pytest.mark.parametrize("n", [1, 2, 3, 16])
def test_lines_come_back_in_half_precision_head_by_head(n: int) -> None:
    values = torch.randn(3, 5, 2, n, dtype=torch.float64) * 1e6
    values[0, 1, 0, 0] = math.nan
    values[2, 4, 1, n - 1] = 1e-3
    packing, text = HeadChart("t", "line", values).packed()
    for layer in range(3):
        for head in range(5):
            found = np.frombuffer(block(text, layer * 5 + head, 2 * n, 2), "<f2").astype(float) * packing["unit"]
            wanted = values[layer, head].flatten().numpy()
            np.testing.assert_allclose(found, wanted, rtol=6e-4, atol=1e-3)


def test_a_heat_map_is_bytes_between_each_heads_own_ends() -> None:
    values = torch.rand(2, 3, 4, 5) * torch.tensor([1e-3, 1.0, 1e6])[None, :, None, None]
    values[1, 2, 0, 0] = math.inf
    values[0, 0] = 7.0
    packing, text = HeadChart("t", "heat", values).packed()
    assert values[0, 1].min().item() == pytest.approx(packing["low"][1], rel=1e-5)
    for head in range(6):
        found = np.frombuffer(block(text, head, 20, 1), np.uint8).astype(float)
        low, high = packing["low"][head], packing["high"][head]
        wanted = values.flatten(0, 1)[head].flatten().numpy()
        found[found == 255] = math.inf
        np.testing.assert_allclose(low + (high - low) * found / 254, wanted, atol=(high - low) / 500 + 1e-9)


def test_a_chart_without_a_single_number() -> None:
    gaps = torch.full((1, 1, 2, 3), math.nan)
    packing, text = HeadChart("t", "heat", gaps).packed()
    assert packing == {"low": [0.0], "high": [0.0]} and set(block(text, 0, 6, 1)) == {255}
    packing, text = HeadChart("t", "line", gaps).packed()
    assert packing == {"unit": 1.0} and np.isnan(np.frombuffer(block(text, 0, 6, 2), "<f2")).all()


def test_the_first_score_is_there_without_a_script_and_marks_are_dots() -> None:
    (figure,) = parsed(head_map(3, 20).html("part-1")).children
    cells = figure.all("td")
    assert [c.text for c in cells[:3]] == ["0.000", "1.000", "2.000"] and len(cells) == 60
    marked = [i for i, c in enumerate(cells) if "marked" in (c.attributes["class"] or "")]
    assert marked == [0, 59]
    assert [row.children[0].text for row in figure.all("tbody")[0].all("tr")] == ["0", "1", "2"]
    assert [o.text for o in figure.all("option")] == ["rising", "falling"]


def test_what_the_script_reads() -> None:
    made = HeadMap("t", (4, 9), 2, {"a": [[1.0, math.nan], [2.123456789, math.inf]]}, charts(2, 2))
    (figure,) = parsed(made.html("part-1")).children
    (data,) = (json.loads(s.text) for s in figure.all("script", "data"))
    assert (data["layers"], data["heads"]) == ([4, 9], 2)
    assert data["scores"] == [{"name": "a", "decimals": 2, "values": [1.0, None, 2.12345679, None]}]
    assert [(c["kind"], c["rows"], c["n"]) for c in data["charts"]] == [
        ("line", 3, 16),
        ("bars", 1, 16),
        ("line", 1, 16),
        ("heat", 8, 16),
    ]
    assert len(figure.all("script", "numbers")) == 4
    assert figure.all("select") == []  # one score leaves nothing to choose


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scores": {}}, "scores"),
        ({"scores": {"a": [[1.0, 2.0]]}}, r"scores='a'.*2 layers of 2 heads"),
        ({"scores": {"a": [[1.0], [2.0]]}}, r"scores='a'"),
        ({"charts": charts(2, 3)}, r"charts='Lines'.*2 layers of 2 heads"),
        ({"marked": {(7, 0)}}, r"marked=\(7, 0\)"),
        ({"marked": {(4, 2)}}, r"marked=\(4, 2\)"),
    ],
)
def test_what_doesnt_fit_is_named(changed: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"scores": {"a": [[1.0, 2.0], [3.0, 4.0]]}, "charts": (), "marked": ()} | changed
    with pytest.raises(ArgumentError, match=said):
        HeadMap("t", (4, 9), 2, **given)


@pytest.mark.parametrize(
    ("kind", "shape", "more", "said"),
    [
        ("pie", (1, 1, 3), {}, "kind='pie'"),
        ("line", (1, 3), {}, "values"),
        ("heat", (1, 1, 3), {}, r"rows, columns"),
        ("line", (1, 1, 0), {}, "values"),
        ("line", (1, 1, 3), {"x": [1.0, 2.0]}, "x=2"),
        ("line", (1, 1, 3), {"series": ["a"]}, "series"),
        ("line", (1, 1, 2, 3), {"series": ["a", "b", "c"]}, "series"),
    ],
)
def test_a_chart_that_cant_be_drawn_is_refused(
    kind: str, shape: tuple[int, ...], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        HeadChart("t", kind, torch.zeros(shape), **more)
