from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import colormaps
from tests.evaluation.tiny_models import tiny
from tests.patching import contents
from tests.reference.inspection import spearman
from torch import Tensor

from ropewalk.analysis.inspect import Inspection, inspect
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.hub.plan import Plan
from ropewalk.patching import install
from ropewalk.report import head_figures
from ropewalk.report.inspect import (
    SINK,
    TOP_HEADER,
    agreement_header,
    agreement_rows,
    facts,
    inspect_page,
    named_scores,
    to_json,
    token_at,
    top_heads,
    top_rows,
    verdict,
    write_inspection,
)
from ropewalk.report.kit.page import Picture
from ropewalk.scaling import NTK

IDS = torch.arange(110) * 37 % 590 + 3
HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def found() -> Inspection:
    model = tiny("Llama")
    seen = inspect(model, IDS, (10, 15), Plan.of(model, RoPE(16, rule=NTK(3.0)), 512))
    return dataclasses.replace(seen, about={**seen.about, "token_texts": {"0": "<s>", "7": HOSTILE}})


@pytest.fixture(scope="module")
def polar() -> Inspection:
    model = tiny("Llama")
    install(model, PoPE(16, 2))
    contents.learn(model)
    return inspect(model, IDS)


def with_sinks(found: Inspection, largest: Tensor, at: Tensor, **about: Any) -> Inspection:
    tensors = dict(found.tensors) | {"sinks.largest": largest, "sinks.largest_at": at}
    tensors.pop("needle.after")
    return Inspection(tensors, {**found.about, **about})


def test_the_verdict_counts_sinks_and_names_the_strongest(found: Inspection) -> None:
    largest, at = torch.full((4, 4), 0.1), torch.full((4, 4), 7)
    largest[1, 2], largest[2, :2] = 0.5, SINK
    at[2, 1] = at[0, 0] = 0
    said = verdict(with_sinks(found, largest, at))
    assert said.startswith("3 of 16 heads are attention sinks") and "1 of them to the first" in said
    assert f"layer 1 head 2, gives 50.0% to token 7 {json.dumps(HOSTILE)}" in said
    assert "46 queries past place 64" in said and "With the plan" not in said
    said = verdict(with_sinks(found, largest.clamp(max=0.2), at))
    assert said.startswith("None of 16 heads is an attention sink") and "20.0%" in said


@pytest.mark.parametrize(("sign", "words"), [(1, "goes with"), (-1, "goes with"), (0, "hardly tells")])
def test_the_verdict_says_whether_the_scores_tell(found: Inspection, sign: int, words: str) -> None:
    keys = found.score("spectral_norm").float()
    shuffled = torch.tensor([0.1, 0.2, 0.3, 0.4]).repeat(4, 1)  # a key's readers have every rank
    said = verdict(with_sinks(found, sign * keys if sign else shuffled, found["sinks.largest_at"]))
    assert f"The spectral norm of keys, DoPE's score, {words}" in said
    if sign:
        assert f"rank correlation {sign:+.2f}" in said
    same = dict(found.tensors) | {"shares.post_ntk.key": torch.full((4, 2, 16), 1 / 16)}
    assert "is the same for all heads" in verdict(Inspection(same, found.about))


def test_the_verdict_says_what_a_plan_does_to_the_needle(found: Inspection) -> None:
    before, after = torch.full((4, 4), 0.25), torch.full((4, 4), 0.5)
    after[3, 1] = 0.9
    said = verdict(Inspection(dict(found.tensors) | {"needle.before": before, "needle.after": after}, found.about))
    assert "give the needle 52.5% of their attention instead of 25.0%" in said
    assert "layer 3 head 1 changes most, from 25.0% to 90.0%" in said


def test_the_top_rows_are_the_largest_sinks_in_order(found: Inspection) -> None:
    largest = found["sinks.largest"]
    rows = top_rows(found)
    assert len(rows) == 10 and all(len(row) == len(TOP_HEADER) for row in rows)
    order = [float(largest[row, head]) for row, head in top_heads(found)]
    assert order == sorted(order, reverse=True) and order[0] == float(largest.max())
    row, head = top_heads(found)[0]
    place = int(found["sinks.largest_at"][row, head])
    assert rows[0][:3] == (f"{row}.{head}", f"{float(largest.max()):.1%}", token_at(found, place))
    assert rows[0][6] == f"{float(found.score('spectral_norm')[row, head]):.3f}"


def test_agreement_is_spearmans_of_every_score(found: Inspection, polar: Inspection) -> None:
    rows = agreement_rows(found)
    assert [row[0] for row in rows] == [label for label, _, _ in named_scores(found)] and len(rows) == 9
    sinks = found["sinks.largest"].flatten().tolist()
    for (_, name, r), row in zip(named_scores(found), rows, strict=True):
        assert len(row) == len(agreement_header(found))
        for cell, (side, stage) in zip(
            row[1:], [(side, stage) for stage in ("post_ntk", "pre_ntk") for side in ("query", "key")], strict=True
        ):
            expected = spearman(found.score(name, r, side, stage).flatten().tolist(), sinks)
            assert float(cell) == pytest.approx(expected, abs=0.0051)
    before = ("queries before rotation", "keys before rotation")
    assert agreement_header(found) == ("score", "queries", "keys", *before)
    # Nothing of PoPE's vectors is measured before its phases, so nothing of it is shown.
    assert agreement_header(polar) == ("score", "queries", "keys") and {len(r) for r in agreement_rows(polar)} == {3}


def test_the_json_has_every_head_and_how_it_was_measured(found: Inspection) -> None:
    read = json.loads(to_json(found))
    assert (read["format"], read["format_version"]) == ("ropewalk.inspection", 1)
    assert read["model"]["fingerprint"] == found.about["model"]["fingerprint"]
    heads = {(head["layer"], head["head"]): head for head in read["heads"]}
    assert len(heads) == 16
    head = heads[2, 3]
    assert head["largest"] == pytest.approx(float(found["sinks.largest"][2, 3]), rel=1e-5)
    assert head["largest_at"] == int(found["sinks.largest_at"][2, 3])
    assert head["needle_after"] == pytest.approx(float(found["needle.after"][2, 3]), rel=1e-5)
    for name, r, side in (("matrix_entropy", None, "key"), ("truncated_entropy", 8, "query")):
        value = float(found.score(name, r, side)[2, 3])
        assert head[f"{name}{'' if r is None else f'_{r}'}_{side}"] == pytest.approx(value, rel=1e-5)


def test_record_pictures_and_page_are_written(polar: Inspection, tmp_path: Path) -> None:
    write_inspection(polar, "ropewalk inspect <model>", tmp_path)
    pictures = {"usage", "sinks", "scores", "low_rank", "cone", "delta"}  # and no needle
    for suffix in ("png", "svg"):
        assert {path.stem for path in tmp_path.glob(f"*.{suffix}")} == pictures
    assert Inspection.load(tmp_path / "inspect.safetensors").tensors.keys() == polar.tensors.keys()
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml") == len(pictures) - 2  # the head map shows sinks and scores
    assert "ropewalk inspect &lt;model&gt;" in page
    assert json.loads((tmp_path / "inspect.json").read_text())["heads"]


@pytest.mark.parametrize("name", head_figures._PICTURES)
@pytest.mark.parametrize("has_plan", [False, True])
def test_no_title_is_cut_off(found: Inspection, polar: Inspection, name: str, has_plan: bool) -> None:
    shown = polar if name == "delta" else found
    if not has_plan:
        tensors = {key: value for key, value in shown.tensors.items() if key != "needle.after"}
        shown = dataclasses.replace(shown, tensors=tensors)
    figure = head_figures._PICTURES[name](shown)
    figure.draw_without_rendering()
    titles = [text for text in (figure._suptitle, *(axes.title for axes in figure.axes)) if text is not None]
    for title in titles:
        box = title.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, title.get_text()


@pytest.mark.parametrize("name", head_figures._PICTURES)
def test_numbers_along_the_axes_are_apart_and_count_columns_whole(
    found: Inspection, polar: Inspection, name: str
) -> None:
    narrow = {}
    for measured in ("cone.measured.query", "cone.measured.key"):
        flat = torch.linspace(110.0, 250.0, found[measured].numel())  # no power of ten among them
        narrow |= {
            measured: flat.reshape(found[measured].shape),
            measured.replace("measured", "bound"): flat.reshape(found[measured].shape) / 9,
        }
    shown = polar if name == "delta" else dataclasses.replace(found, tensors={**found.tensors, **narrow})
    figure = head_figures._PICTURES[name](shown)
    figure.draw_without_rendering()
    for axes in figure.axes:
        drawn = [label for label in axes.xaxis.get_ticklabels(which="both") if label.get_text()]
        low, high = sorted(axes.get_xlim())
        drawn = [label for label in drawn if low <= label.get_position()[0] <= high]
        boxes = sorted((label.get_window_extent() for label in drawn), key=lambda box: box.x0)
        assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes)), axes.get_title()
        if axes.images and axes.get_xlabel() != "token":
            assert all(re.fullmatch("[0-9]+", label.get_text()) for label in drawn), axes.get_title()


def test_a_tokens_text_stays_text(found: Inspection) -> None:
    largest = torch.full((4, 4), 0.5)
    seen = with_sinks(found, largest, torch.full((4, 4), 7))
    html = inspect_page(seen, "ropewalk inspect", {}).html()
    assert "alert(1)" in html and "<script>alert" not in html and HOSTILE not in html


def test_facts_say_what_decides_the_figures(found: Inspection) -> None:
    said = facts(found)
    assert found.about["model"]["fingerprint"][:16] in said["model"]
    assert "46 queries" in said["sinks"] and "110" in said["tokens"] and said["needle"] == "tokens 10 to 14"
    assert set(said) == {"model", "tokens", "sinks", "needle"}  # no more than the record has


def test_a_map_without_values_to_tell_apart_and_bands_outside_cones_are_drawn(found: Inspection) -> None:
    flat = {name: torch.zeros_like(found[name]) for name in found.tensors if name.startswith(("sinks", "needle"))}
    none = {name: torch.full_like(found[name], 3.0) for name in ("cone.gamma.query", "cone.gamma.key")}
    none |= {name: torch.zeros_like(found[name]) for name in ("cone.bound.query", "cone.bound.key")}
    seen = Inspection(dict(found.tensors) | flat | none, found.about)
    for draw in (head_figures.sinks, head_figures.cone, head_figures.needle):
        draw(seen).savefig(io.BytesIO(), dpi=30)


def drawn_delta(found: Inspection, delta: Tensor) -> Any:
    """The figure of PoPE's phases with other phases in it."""
    return head_figures.delta(dataclasses.replace(found, tensors={**found.tensors, "delta": delta}))


def test_phases_are_drawn_within_half_a_turn_of_none_whatever_turns_they_have(polar: Inspection) -> None:
    delta = polar["delta"].clone()
    delta[0, 0, :4] = torch.tensor([-0.79, -5.50, 4.0, 0.0])
    for turns in (-1, 0, 2):
        image = drawn_delta(polar, delta + 2 * torch.pi * turns).axes[0].images[0]
        shown = torch.from_numpy(image.get_array().filled())
        assert torch.allclose(shown, torch.atan2(delta.sin(), delta.cos()).flatten(0, 1), atol=1e-5)
        assert shown[0, :4].tolist() == pytest.approx([-0.79, 0.7832, -2.2832, 0.0], abs=1e-4)
        assert image.get_clim() == (-torch.pi, torch.pi)


def test_small_phases_fill_the_scale_and_their_size_is_said(polar: Inspection) -> None:
    delta = torch.zeros_like(polar["delta"])
    delta[0, 0, 0], delta[0, 0, 1] = -0.0385, 2 * torch.pi + 0.02
    axes = drawn_delta(polar, delta).axes[0]
    assert (
        axes.images[0].get_clim() == pytest.approx((-0.0385, 0.0385), abs=1e-6)
        and "at most 0.039 from 0" in axes.get_title()
    )
    assert drawn_delta(polar, torch.zeros_like(delta)).axes[0].images[0].get_clim() == (-torch.pi, torch.pi)


def test_without_a_cone_the_picture_says_so(found: Inspection) -> None:
    none = {name: torch.full_like(found[name], 3.0) for name in ("cone.gamma.query", "cone.gamma.key")}
    none |= {name: torch.zeros_like(found[name]) for name in ("cone.bound.query", "cone.bound.key")}
    left, right = head_figures.cone(Inspection(dict(found.tensors) | none, found.about)).axes
    assert [text.get_text() for text in left.texts] == ["no band's vectors all lie in a cone"]
    assert not len(left.get_xticks()) and right.get_ylim() == (0, 1.02) and left.get_legend() is None


def test_the_cones_marks_are_explained(found: Inspection) -> None:
    names = [f"cone.{name}.{side}" for name in ("bound", "measured") for side in ("query", "key")]
    ones = {name: torch.full_like(found[name], 2.0) for name in names}
    left, right = head_figures.cone(dataclasses.replace(found, tensors={**found.tensors, **ones})).axes
    said = [text.get_text() for text in left.get_legend().get_texts()]
    assert [text.partition(":")[0] for text in said] == ["queries", "keys", "bound = measured"] and not left.texts
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["queries", "keys"]


def test_phases_can_be_told_apart_in_grey(polar: Inspection) -> None:
    image = drawn_delta(polar, polar["delta"]).axes[0].images[0]
    colours = image.cmap(image.norm(torch.linspace(-torch.pi, torch.pi, 100).numpy()))[:, :3]
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (luminance[1:] > luminance[:-1]).all()


def test_the_picture_of_phases_names_its_unit_and_the_page_says_that_it_wraps(polar: Inspection) -> None:
    figure = drawn_delta(polar, polar["delta"])
    assert [axes.get_ylabel() for axes in figure.axes] == ["layer.key head", "radians"]
    (caption,) = [
        part.caption for part in inspect_page(polar, "x", {"delta": b"<svg/>"}).parts if isinstance(part, Picture)
    ]
    assert "-π to π" in caption and "same phase" in caption


def test_the_colours_of_maps_go_from_dark_to_bright() -> None:
    (name,) = re.findall(r"[a-z]+", head_figures._MAP)
    colours = colormaps[name](torch.linspace(0, 1, 50).numpy())[:, :3]
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (luminance[1:] > luminance[:-1]).all()
