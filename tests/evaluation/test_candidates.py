from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.evaluation.tiny_models import WINDOW, tiny

from ropewalk.analysis.calibration_pass import measure
from ropewalk.analysis.head_statistics import Statistics
from ropewalk.encodings.dope import READINGS, WHOLE_VECTOR, DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.evaluation.candidates import (
    Candidate,
    dope_candidates,
    plain_candidate,
    rotation_to_stretch,
    rule_candidates,
    serving_scope,
)
from ropewalk.patching import installed
from ropewalk.scaling import NTK, DynamicNTK, Given, Linear, LongRoPE, YaRN, rules


def schedules(candidate: Candidate) -> list[tuple[float, ...]]:
    encoding = candidate.encoding
    ropes = [e for _, e in encoding.layers] if isinstance(encoding, PerLayer) else [encoding]
    return [(*r.schedule().frequencies.tolist(), r.schedule().attention_scale) for r in ropes if isinstance(r, RoPE)]


def rules_of(found: list[Candidate]) -> list[object]:
    return [c.encoding.rule for c in found if isinstance(c.encoding, RoPE)]


def random_statistics(heads: int = 4, head_dim: int = 64, layers: tuple[int, ...] = (0, 1, 2, 3)) -> Statistics:
    x = torch.randn(len(layers), heads, 200, head_dim, dtype=torch.float64)
    x *= torch.rand(len(layers), heads, 1, head_dim)
    y = x[:, ::2].roll(1, 0) + 0.1
    return Statistics({"post_ntk": (x.mT @ x, y.mT @ y)}, 200, layers, "half", head_dim)


def test_every_rule_that_a_name_builds_is_tried_and_no_schedule_twice() -> None:
    found = rule_candidates(RoPE(64), 8192, 16384)
    tried = {type(rule).name for rule in rules_of(found) if rule is not None}  # type: ignore[attr-defined]
    assert tried == set(rules()) - {"longrope", "given"}
    assert len({c.name for c in found}) == len(found)
    every = [schedules(plain_candidate(RoPE(64))), *map(schedules, found)]
    for index, one in enumerate(every):
        for other in every[:index]:
            assert not torch.allclose(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=0)


def test_a_repeated_schedule_is_left_out() -> None:
    """At one and the same length a factor of 1 changes nothing."""
    names = [c.name for c in rule_candidates(RoPE(64), 8192, 8192)]
    assert "linear x1" not in names and "ntk_by_parts x1" not in names
    assert "linear x1.5" in names


def test_factors_are_multiples_of_the_stretch() -> None:
    found = {c.name: c.encoding for c in rule_candidates(RoPE(64), 4000, 10000)}
    ntk = found["ntk x5"]
    assert isinstance(ntk, RoPE) and ntk.rule == NTK(5.0)
    assert next(iter(found)) == "yarn x3.75"


def test_a_rule_of_the_models_own_is_taken_further_first() -> None:
    found = rule_candidates(RoPE(64, rule=YaRN(4.0, 32768)), 131072, 262144)
    assert [c.name for c in found[:3]] == ["own yarn x8", "own yarn x12", "own yarn x16"]
    assert rules_of(found)[0] == YaRN(8.0, 32768)
    dynamic = rule_candidates(RoPE(64, rule=DynamicNTK(4096, 4096, 2.0)), 4096, 8192)
    assert dynamic[0].name == "own dynamic_ntk" and rules_of(dynamic)[0] == DynamicNTK(8192, 4096, 2.0)
    assert [c.name for c in dynamic].count("own dynamic_ntk") == 1
    factors = tuple(1.0 + i / 8 for i in range(32))
    long = rule_candidates(RoPE(64, rule=LongRoPE((1.0,) * 32, factors, 4096, 4096)), 4096, 8192)
    assert rules_of(long)[0] == LongRoPE((1.0,) * 32, factors, 4096, 8192)
    given = rule_candidates(RoPE(64, rule=Given((1.0,) * 32)), 4096, 8192)
    assert given[0].name.startswith("yarn")


def test_rules_that_cannot_serve_few_channels_are_left_out() -> None:
    found = rule_candidates(RoPE(16, rotary_dim=2), 4096, 8192)
    assert "linear x2" in [c.name for c in found]
    assert not any(c.name.startswith("ntk x") for c in found)


def test_layers_that_are_not_stretched_keep_their_rotation() -> None:
    own = PerLayer(((0, RoPE(16, 500.0)), (1, RoPE(16, 1e6, Linear(8.0)))))
    found = rule_candidates(own, 4096, 8192, lambda layer: layer == 1)
    assert found[0].name == "own linear x16"
    for candidate in found:
        assert candidate.encoding.at(0) == own.at(0)
        assert candidate.encoding.at(1) != own.at(1)


@pytest.mark.parametrize(
    ("family", "changed", "near"),
    [
        ("Llama", {}, set()),
        ("Gemma2", {}, {0, 2}),
        ("Gemma3", {}, {0, 2}),
        # A window wider than the training length meets distances that nobody trained.
        ("Gemma2", {"sliding_window": 300}, set()),
        # Where all layers have a window there is nothing else to stretch.
        ("Mistral", {}, set()),
        ("Gemma2", {"layer_types": ["sliding_attention"] * 4}, set()),
    ],
)
def test_layers_with_a_window_inside_the_training_length_are_not_stretched(
    family: str, changed: dict[str, object], near: set[int]
) -> None:
    model = tiny(family, **changed)
    assert WINDOW < 256
    own, stretched = rotation_to_stretch(model, 256)
    assert {layer for layer in range(4) if not stretched(layer)} == near
    found = rule_candidates(own, 256, 512, stretched)
    assert len(found) > 10
    for layer in range(4):
        assert (found[0].encoding.at(layer) == RoPE.from_model(model).at(layer)) == (layer in near)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        before = model(ids).logits
        with installed(model, plain_candidate(own).encoding):
            torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)
        with installed(model, found[0].encoding):
            assert not torch.allclose(model(ids).logits, before, atol=1e-4)


def test_every_mode_and_reading_is_tried_and_no_plan_twice() -> None:
    base = Candidate("yarn x2", RoPE(64, rule=YaRN(2.0, 8192)))
    found = dope_candidates(base, random_statistics(), 8192, seed=7)
    plans = [c.encoding for c in found if isinstance(c.encoding, DoPE)]
    assert {(p.mode, p.reading) for p in plans} == {(m, r) for m, readings in READINGS.items() for r in readings}
    assert len(set(plans)) == len(found) == len({c.name for c in found})
    assert {(p.original_length, p.seed, p.rope) for p in plans} == {(8192, 7, base.encoding)}
    assert {c.encoding.rope for c in found} == {base.encoding}
    assert found[0].name == "yarn x2 + DoPE gaussian/rotation, 3 heads (truncated_entropy-32 key)"


@pytest.mark.parametrize("is_mixed", [False, True])
def test_on_a_remap_each_plan_comes_for_each_view(is_mixed: bool) -> None:
    remap = SelfExtend(RoPE(64), 64, 3)
    encoding = PerLayer(((0, RoPE(64)), *((layer, remap) for layer in (1, 2, 3)))) if is_mixed else remap
    statistics = random_statistics()
    found = dope_candidates(Candidate("self_extend 64/3", encoding), statistics, 256)
    plans = [c.encoding for c in found if isinstance(c.encoding, DoPE)]
    assert [p.view for p in plans[:10]] == ["far"] * 3 + ["near"] * 3 + ["both"] * 3 + ["far"]
    by_view = {
        view: [dataclasses.replace(p, view="both") for p in plans if p.view == view] for view in ("far", "near", "both")
    }
    assert by_view["far"] == by_view["near"] == by_view["both"]
    on_rope = dope_candidates(Candidate("plain", RoPE(64)), statistics, 256)
    assert [p.reading for p in by_view["far"]] == [c.encoding.reading for c in on_rope if isinstance(c.encoding, DoPE)]
    assert {p.rope for p in plans} == {encoding}
    assert len(set(plans)) == len({c.name for c in found}) == len(found)
    assert found[3].name == "self_extend 64/3 + DoPE gaussian/rotation near, 3 heads (truncated_entropy-32 key)"


def test_each_plan_on_a_remap_can_be_had() -> None:
    model = tiny("Llama")
    base = Candidate("self_extend 64/2", SelfExtend(RoPE(16), 64, 2))
    ids = torch.arange(3, 103)[None]
    statistics = measure(model, ids, rope=base.encoding)
    scope = serving_scope(model, base, statistics)
    assert scope == "query_head"
    with torch.no_grad(), installed(model, base.encoding):
        without = model(ids).logits
    found = dope_candidates(base, statistics, 256, scope=scope)
    assert len(found) > 20
    for candidate in found[:9]:
        with torch.no_grad(), installed(model, candidate.encoding):
            changed = model(ids).logits
        assert torch.isfinite(changed).all() and not torch.allclose(changed[:, -1], without[:, -1], atol=1e-3)
        is_far = " far," in candidate.name
        assert torch.allclose(changed[:, :64], without[:, :64], atol=1e-4) == is_far, candidate.name


def test_few_heads_and_few_channels_bound_what_is_chosen() -> None:
    found = dope_candidates(Candidate("plain", RoPE(8)), random_statistics(2, 8, (5,)), 512)
    assert found and all(len(c.encoding.heads) <= 2 for c in found if isinstance(c.encoding, DoPE))
    assert all("-32" not in c.name for c in found)
    assert len({c.encoding for c in found}) == len(found)


def test_readings_that_need_whole_heads_are_left_out_where_heads_come_cut() -> None:
    statistics = random_statistics(head_dim=16)
    found = dope_candidates(Candidate("plain", RoPE(64, rotary_dim=16)), statistics, 512)
    assert found
    assert not {c.encoding.reading for c in found if isinstance(c.encoding, DoPE)} & set(WHOLE_VECTOR)


def test_the_scope_is_what_the_model_can_have() -> None:
    for model, wanted in ((tiny("Llama"), "query_head"), (tiny("StableLm"), "kv_group")):
        base = plain_candidate(rotation_to_stretch(model, 256)[0])
        statistics = measure(model, torch.arange(3, 60)[None])
        assert serving_scope(model, base, statistics) == wanted
        plans = dope_candidates(base, statistics, 256, scope=wanted)
        assert {c.encoding.scope for c in plans if isinstance(c.encoding, DoPE)} == {wanted}
        for candidate in plans:
            with installed(model, candidate.encoding):
                pass
