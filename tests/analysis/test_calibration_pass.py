from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from tests.evaluation.tiny_models import tiny
from torch import Tensor, nn

from ropewalk.analysis import calibration_pass as measure_module
from ropewalk.analysis.calibration_pass import measure
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE, rotate
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.heads import HeadSelection
from ropewalk.patching import installed
from ropewalk.scaling import NTK, Rule, YaRN

IDS = torch.arange(80).reshape(2, 40) * 37 % 590 + 3
STAGES = ("pre_ntk", "post_rope", "post_ntk")


def handed_over(model: Any, monkeypatch: pytest.MonkeyPatch, **inputs: Any) -> list[tuple[Tensor, Tensor]]:
    """Each layer's queries and keys before rotation, caught in the model's own `apply_rotary_pos_emb`."""
    seen: list[tuple[Tensor, Tensor]] = []
    home = importlib.import_module(type(model).__module__)
    real = home.apply_rotary_pos_emb

    def catch(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((q, k))
        return real(q, k, *args, **kwargs)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(home, "apply_rotary_pos_emb", catch)
        model(**inputs)
    return seen


def gram(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (H, d, d) float64."""
    x = x.double()
    return (x.mT @ x).sum(0)


def turned(x: Tensor, rope: RoPE) -> Tensor:
    return rotate(x, *rope.tables(torch.arange(x.shape[2])), rope.layout)


def with_rule(own: Any, rule: Rule) -> Any:
    if isinstance(own, PerLayer):
        return own.map(lambda _, rope: RoPE(rope.head_dim, rope.base, rule))
    return RoPE(own.head_dim, own.base, rule, own.layout, own.rotary_dim)


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        ("Llama", NTK(3.0)),
        ("Llama", YaRN(4.0, 256)),
        ("GPTNeoX", NTK(2.0)),
        ("Qwen3", YaRN(2.0, 256)),
        ("Gemma3", NTK(2.0)),
    ],
)
def test_every_stage_is_x_t_x_of_the_models_own_vectors(
    family: str, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    own = RoPE.from_model(model)
    ruled = with_rule(own, rule)
    forwards = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    logits = model(IDS).logits
    # Content above the first layer depends on the rule: it must have been in force.
    monkeypatch.setattr(measure_module, "CHUNK_TOKENS", 7)
    found = measure(model, IDS, stages=STAGES, rope=ruled)
    assert torch.equal(model(IDS).logits, logits)
    assert {name: module.__dict__.get("forward") for name, module in model.named_modules()} == forwards
    seen = before_rotation(model, ruled, monkeypatch)
    assert found.layers == (0, 1, 2, 3)
    for layer, pair in enumerate(seen):
        mine, plain = ruled.at(layer), own.at(layer)
        assert isinstance(mine, RoPE) and isinstance(plain, RoPE)
        for side, x in enumerate(pair):
            for stage, expected in (
                ("pre_ntk", x),
                ("post_rope", turned(x, plain)),
                ("post_ntk", turned(x, mine)),
            ):
                torch.testing.assert_close(found.grams[stage][side][layer], gram(expected), rtol=1e-4, atol=1e-3)
    assert found.num_tokens == 80 and (found.num_heads, found.head_dim) == (4, 16)
    first = own.at(0)
    assert isinstance(first, RoPE)
    assert (found.layout, found.rotary_dim) == (first.layout, first.width)
    assert found.model == type(model).__name__


def before_rotation(model: Any, rope: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Each layer's queries and keys before rotation in a pass over IDS with `rope` in force."""
    inputs: list[tuple[Any, Any]] = []
    own, seen = RoPE.from_model(model), []
    attentions = [m for n, m in model.named_modules() if n.endswith((".self_attn", ".attention"))]
    with installed(model, rope):
        hooks = [
            module.register_forward_pre_hook(lambda _m, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True)
            for module in attentions
        ]
        model(IDS, use_cache=False)
        for hook in hooks:
            hook.remove()
    for attention, (args, kwargs) in zip(attentions, inputs, strict=True):
        kwargs = {**kwargs, "position_embeddings": own_tables(own, attention)}
        seen += handed_over_by(attention, monkeypatch, args, kwargs)
    return seen


def own_tables(own: Any, attention: nn.Module) -> tuple[Tensor, Tensor]:
    rope = own.at(attention.layer_idx)
    assert isinstance(rope, RoPE)
    cos, sin = rope.tables(torch.arange(40)[None])
    return cos, sin


def handed_over_by(
    attention: nn.Module, monkeypatch: pytest.MonkeyPatch, args: Any, kwargs: Any
) -> list[tuple[Tensor, Tensor]]:
    """What one attention layer hands its rotation for given inputs."""

    def run(**_: Any) -> None:
        attention(*args, **kwargs)

    run.__module__ = type(attention).__module__
    holder = type("Holder", (), {"__call__": lambda _self: run(), "__module__": type(attention).__module__})
    return handed_over(holder(), monkeypatch)


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_padding_on_either_side_changes_nothing(family: str) -> None:
    model = tiny(family)
    ids = IDS[:1, :30]
    wanted = measure(model, ids, stages=STAGES, rope=with_rule(RoPE.from_model(model), NTK(2.0)))
    for left in (0, 6, 10):
        mask = torch.zeros(1, 40, dtype=torch.long)
        mask[:, left : left + 30] = 1
        padded = torch.full((1, 40), 599)
        padded[:, left : left + 30] = ids
        rope = with_rule(RoPE.from_model(model), NTK(2.0))
        found = measure(model, padded, stages=STAGES, rope=rope, attention_mask=mask)
        assert found.num_tokens == 30
        for stage in STAGES:
            for mine, other in zip(found.grams[stage], wanted.grams[stage], strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


def test_the_size_of_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rope = tiny("Llama"), with_rule(RoPE.from_model(tiny("Llama")), YaRN(2.0, 256))
    found = []
    for chunk in (3, 1000):
        monkeypatch.setattr(measure_module, "CHUNK_TOKENS", chunk)
        found.append(measure(model, IDS, stages=STAGES, rope=rope).grams)
    for stage in STAGES:
        for one, other in zip(found[0][stage], found[1][stage], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_layers_without_rotation_are_left_out_and_the_others_keep_their_numbers() -> None:
    model = tiny("SmolLM3")
    statistics = measure(model, IDS)
    assert statistics.layers == (0, 2, 3)
    assert set(statistics.select("matrix_entropy", heads=12).layers) == {0, 2, 3}


def test_without_a_rule_post_rope_is_post_ntk_and_nothing_is_turned_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = measure_module._TapModule._add_turned
    monkeypatch.setattr(measure_module._TapModule, "_add_turned", lambda *args: (calls.append(1), real(*args))[1])
    model = tiny("Llama")
    found = measure(model, IDS, stages=("post_rope", "post_ntk"))
    assert all(map(torch.equal, found.grams["post_rope"], found.grams["post_ntk"]))
    assert not calls
    measure(model, IDS, stages=("post_rope",), rope=with_rule(RoPE.from_model(model), NTK(2.0)))
    assert len(calls) == 8


def test_what_is_kept_does_not_grow_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything reachable from the taps is d x d a head, whatever the text's length."""
    kept: list[int] = []
    real = measure_module._statistics

    def count(model: nn.Module, ids: Tensor, taps: dict[int, Any], *rest: Any) -> Any:
        tensors = [t for tap in taps.values() for pair in tap.sums.values() for a in pair for t in vars(a).values()]
        held = [v for tap in taps.values() for v in vars(tap).values() if isinstance(v, Tensor)]
        tensors = [t for t in tensors if isinstance(t, Tensor)] + held
        assert all(size in (2, 4, 16) for t in tensors for size in t.shape)
        kept.append(sum(t.numel() * t.element_size() for t in tensors))
        return real(model, ids, taps, *rest)

    monkeypatch.setattr(measure_module, "_statistics", count)
    for tokens in (30, 120):
        measure(tiny("Llama"), torch.arange(tokens)[None] + 3, stages=STAGES)
    assert kept[0] == kept[1] == 3 * 4 * (4 + 2) * (16 * 16 * 8) + 3 * 4 * 2 * 8


def test_the_text_is_told_by_its_fingerprint() -> None:
    model = tiny("Llama")
    one, same, other = (measure(model, ids).text_fingerprint for ids in (IDS, IDS.clone(), IDS + 1))
    assert one == same != other


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"stages": ("post_nkt",)}, "post_ntk"),
        ({"stages": ()}, "stages"),
        ({"input_ids": IDS[0]}, "input_ids.shape"),
        ({"input_ids": IDS[:, :0]}, "input_ids.shape"),
        ({"attention_mask": torch.ones(2, 39)}, "attention_mask.shape"),
        ({"rope": RoPE(32)}, "rope"),
        ({"rope": RoPE(16, rotary_dim=8)}, "rope"),
        ({"rope": DoPE(RoPE(16), HeadSelection([(1, 1)]))}, "rope"),
    ],
)
def test_wrong_input_is_named_and_the_model_left_as_it_was(changed: dict[str, Any], named: str) -> None:
    model = tiny("Llama")
    with pytest.raises(ArgumentError, match=named):
        measure(model, **({"input_ids": IDS} | changed))
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_without_rotary_attention_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear"):
        measure(nn.Linear(2, 2), IDS)


class TestUnderARemap:
    """The Grams of the far view: 40 tokens of which those further apart than the window are at grouped positions."""

    @pytest.mark.parametrize(("window", "group"), [(8, 3), (7, 2), (39, 4)])
    @pytest.mark.parametrize("family", ["Llama", "Qwen3", "GPTNeoX"])
    def test_grams_are_of_far_queries_and_keys_where_they_are_compared(
        self, family: str, window: int, group: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny(family)
        rope = with_rule(RoPE.from_model(model), YaRN(2.0, 256))
        remap = SelfExtend(rope, window, group)
        logits = model(IDS).logits
        monkeypatch.setattr(measure_module, "CHUNK_TOKENS", 7)
        found = measure(model, IDS, rope=remap)
        assert torch.equal(model(IDS).logits, logits)
        seen, tokens = before_rotation(model, remap, monkeypatch), torch.arange(40)
        of_queries, of_keys = tokens // group + window - window // group, tokens // group
        assert found.layers == (0, 1, 2, 3) and found.num_tokens == 2 * (40 - window)
        for layer, (q, k) in enumerate(seen):
            queries = rotate(q, *rope.tables(of_queries), rope.layout)[:, :, window:]
            keys = rotate(k, *rope.tables(of_keys), rope.layout)[:, :, : 40 - window]
            for side, x in enumerate((queries, keys)):
                torch.testing.assert_close(found.grams["post_ntk"][side][layer], gram(x), rtol=1e-4, atol=1e-3)

    def test_layers_that_are_not_remapped_are_measured_as_they_rotate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny("Llama")
        rope = RoPE.from_model(model)
        mixed = PerLayer(tuple((layer, SelfExtend(rope, 8, 3) if layer % 2 else rope) for layer in range(4)))
        found = measure(model, IDS, rope=mixed)
        for layer, (q, _) in enumerate(before_rotation(model, mixed, monkeypatch)):
            far = rotate(q, *rope.tables(torch.arange(40) // 3 + 6), rope.layout)[:, :, 8:]
            expected = far if layer % 2 else turned(q, rope)
            torch.testing.assert_close(found.grams["post_ntk"][0][layer], gram(expected), rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("is_mixed", [False, True])
    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"stages": ("pre_ntk",)}, "^stages=.*post_ntk alone"),
            ({"stages": ("post_rope", "post_ntk")}, "^stages=.*post_ntk alone"),
            ({"attention_mask": torch.ones(2, 40).tril(20)}, "^attention_mask=.*no padding"),
        ],
    )
    def test_what_the_far_view_does_not_have_is_refused(
        self, changed: dict[str, Any], said: str, is_mixed: bool
    ) -> None:
        model = tiny("Llama")
        rope = RoPE.from_model(model)
        remap = SelfExtend(rope, 8, 3)
        mixed = PerLayer(tuple((layer, remap if layer else rope) for layer in range(4)))
        with pytest.raises(ArgumentError, match=said) as caught:
            measure(model, IDS, rope=mixed if is_mixed else remap, **changed)
        assert "\n" not in str(caught.value)
        assert not any("forward" in module.__dict__ for module in model.modules())

    def test_a_mask_of_ones_is_no_padding(self) -> None:
        model = tiny("Llama")
        remap = SelfExtend(RoPE.from_model(model), 8, 3)
        found = measure(model, IDS, rope=remap, attention_mask=torch.ones(2, 40))
        assert all(map(torch.equal, found.grams["post_ntk"], measure(model, IDS, rope=remap).grams["post_ntk"]))

    @pytest.mark.parametrize("window", [40, 100])
    def test_a_text_within_the_window_is_refused_in_one_line(self, window: int) -> None:
        model = tiny("Llama")
        with pytest.raises(ArgumentError, match=r"^input_ids\.shape=.*past the remap's window") as caught:
            measure(model, IDS, rope=SelfExtend(RoPE.from_model(model), window, 3))
        assert "\n" not in str(caught.value)
