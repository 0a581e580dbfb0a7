from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.sweeps import CONFIG, TEXT, LocalNeedles, needles_folder
from tests.evaluation.tiny_models import tiny

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError
from ropewalk.evaluation import plans as module
from ropewalk.evaluation.as_saved import as_saved
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.cells import Cells
from ropewalk.evaluation.plans import Target, build_plan, distinct, head_statistics
from ropewalk.evaluation.remaps import REMAPS, remap_candidates
from ropewalk.evaluation.sweep_config import DoPEEntry, PlanEntry
from ropewalk.hub.plan import Plan
from ropewalk.scaling import NTK, Resonance, YaRN


@pytest.fixture(scope="module")
def needles(tmp_path_factory: pytest.TempPathFactory) -> LocalNeedles:
    return LocalNeedles(needles_folder(tmp_path_factory.mktemp("plans")), TEXT)


@pytest.fixture
def target(needles: LocalNeedles, tmp_path: Path) -> Iterator[Target]:
    with Cells(tmp_path / "out") as cells:
        yield needles.target(needles.config(CONFIG), cells)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A note for each pass that measures head statistics."""
    calls: list[Any] = []
    real = module.measure
    monkeypatch.setattr(module, "measure", lambda *args, **kw: (calls.append(kw["rope"]), real(*args, **kw))[1])
    return calls


def test_rules_by_name_with_and_without_a_factor(target: Target) -> None:
    plain = build_plan(PlanEntry(), target)
    assert plain.name == "plain" and plain.encoding == RoPE.from_model(target.model)
    by = {entry: build_plan(entry, target) for entry in (PlanEntry("yarn"), PlanEntry("resonance+ntk", 3.0))}
    yarn, resonance = by.values()
    assert yarn.name == "yarn" and isinstance(yarn.encoding, RoPE)
    assert isinstance(yarn.encoding.rule, YaRN) and yarn.encoding.rule.factor == 220 / 128
    assert resonance.name == "resonance+ntk x3" and isinstance(resonance.encoding, RoPE)
    assert resonance.encoding.rule == Resonance(NTK(3.0))
    assert build_plan(PlanEntry("yarn", name="mine"), target).name == "mine"
    with pytest.raises(ArgumentError, match="no rule that could"):
        build_plan(PlanEntry(factor=2.0), target)


def test_remaps_have_the_sizes_that_extend_gives_them(target: Target) -> None:
    own = RoPE.from_model(target.model)
    offered = remap_candidates(target.model, own, 128, 220)
    for name in REMAPS:
        likeliest = next(candidate for candidate in offered if candidate.name.split()[0] == name)
        assert build_plan(PlanEntry(remap=name), target) == Candidate(name, likeliest.encoding)
    capped = tiny("Gemma2")  # its scores are capped before the softmax
    other = dataclasses.replace(target, model=capped, saved=as_saved(capped, "gemma2"))
    with pytest.raises(ArgumentError, match="plans='rerope'") as caught:
        build_plan(PlanEntry(remap="rerope"), other)
    assert "\n" not in str(caught.value)


def test_layers_with_a_window_keep_their_rotation(target: Target) -> None:
    model = tiny("Gemma3")
    mixed = dataclasses.replace(target, model=model, saved=as_saved(model, "gemma3"))
    encoding = build_plan(PlanEntry("ntk", 2.0), mixed).encoding
    assert isinstance(encoding, PerLayer)
    rules = [entry.rule for _, entry in encoding.layers if isinstance(entry, RoPE)]
    assert rules == [None, NTK(2.0), None, NTK(2.0)]


def test_heads_come_from_statistics_measured_once_a_rule_and_kept(target: Target, measured: list[Any]) -> None:
    two, three = (
        build_plan(PlanEntry("ntk", 2.0, DoPEEntry(heads=heads, r=32, mode="parts", apply_to="key")), target)
        for heads in (2, 3)
    )
    assert isinstance(two.encoding, DoPE) and isinstance(three.encoding, DoPE)
    statistics = head_statistics(two.encoding.rope, target)
    assert len(measured) == 1 and measured[0] == two.encoding.rope
    # A head has 16 channels, so that many eigenvalues at most.
    assert three.encoding.heads == statistics.select("truncated_entropy", r=16, heads=3)
    assert three.encoding.original_length == 128 and three.encoding.apply_to == "key"
    assert three.name == "ntk x2 + DoPE parts/unrotated, 3 heads (truncated_entropy-16 key, apply_to key)"
    build_plan(PlanEntry("ntk", 3.0, DoPEEntry(r=4)), target)
    build_plan(PlanEntry("ntk", 2.0, DoPEEntry(r=4)), dataclasses.replace(target, length=240))
    assert len(measured) == 3
    kept = list((target.cells.folder / module.STATISTICS).iterdir())
    assert len(kept) == 3 and all(file.suffix == ".safetensors" for file in kept)


def test_damaged_statistics_are_measured_again(target: Target, measured: list[Any]) -> None:
    entry = PlanEntry(dope=DoPEEntry(r=4))
    first = build_plan(entry, target)
    (kept,) = (target.cells.folder / module.STATISTICS).iterdir()
    kept.write_bytes(kept.read_bytes()[:-30])
    assert build_plan(entry, target) == first and len(measured) == 2
    assert build_plan(entry, target) == first and len(measured) == 2


def test_statistics_that_another_process_is_measuring_are_waited_for(
    target: Target, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = RoPE(16)
    head_statistics(rope, target)
    (kept,) = (target.cells.folder / module.STATISTICS).iterdir()
    content = kept.read_bytes()
    kept.unlink()
    monkeypatch.setattr(Cells, "claim", lambda *_: [])
    monkeypatch.setattr(module.time, "sleep", lambda _: kept.write_bytes(content))
    head_statistics(rope, target)
    assert len(measured) == 1


def test_a_saved_plan_is_taken_as_it_is_if_it_is_for_such_a_model(target: Target, tmp_path: Path) -> None:
    encoding = RoPE(16, rule=NTK(5.0))
    Plan.of(target.model, encoding, 512).save_pretrained(tmp_path / "ours")
    assert build_plan(PlanEntry(saved=str(tmp_path / "ours")), target) == Candidate("plan ours", encoding)
    Plan.of(tiny("Llama", num_hidden_layers=2), encoding, 512).save_pretrained(tmp_path / "other")
    with pytest.raises(ArgumentError, match="num_layers"):
        build_plan(PlanEntry(saved=str(tmp_path / "other")), target)


def test_each_encoding_once_and_each_name_for_one() -> None:
    one, same, other = Candidate("a", RoPE(16)), Candidate("b", RoPE(16)), Candidate("a", RoPE(16, 500.0))
    assert distinct([one, same, one]) == [one]
    with pytest.raises(ArgumentError, match="two plans"):
        distinct([one, other])
