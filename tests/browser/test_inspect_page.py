"""The page of `ropewalk inspect`, of a model with a thousand heads: it opens, and so does a head."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.browser.chromium import opened, wait_for_text
from tests.evaluation.tiny_models import tiny

from ropewalk.analysis.inspect import Inspection, inspect
from ropewalk.report.inspect import inspect_page

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def found() -> Inspection:
    """A tiny model's inspection with its layers and heads repeated to 32 x 32."""
    seen = inspect(tiny("Llama"), torch.arange(300) * 37 % 590 + 3, (100, 110))
    tensors = {}
    for name, tensor in seen.tensors.items():
        if name in ("tokens", "low_rank.places"):
            tensors[name] = tensor
        else:
            times = [8] * min(tensor.dim(), 2) + [1] * (tensor.dim() - 2)
            tensors[name] = tensor.repeat(*([8, 1] if name == "frequencies" else times))
    texts = {str(place): HOSTILE for place in range(300)}
    about = {**seen.about, "layers": list(range(32)), "windows": [None] * 32, "token_texts": texts}
    return dataclasses.replace(seen, tensors=tensors, about=about)


@pytest.mark.parametrize("width", [1200, 360])
def test_a_thousand_heads_open_and_each_has_its_charts(
    found: Inspection, browser: Any, tmp_path: Path, width: int
) -> None:
    with opened(browser, inspect_page(found, "ropewalk inspect", {}), tmp_path / "report.html", width) as seen:
        cells = seen.tab.locator(".heads td")
        assert cells.count() == 1024
        assert seen.width() <= width
        cells.nth(33).click()
        charts = seen.tab.locator(".opened .chart")
        assert charts.count() == 5
        wait_for_text(seen.tab.locator(".opened h4"), "Layer 1, head 1")
        assert HOSTILE in seen.tab.locator(".verdict").text_content()
        assert seen.width() <= width
