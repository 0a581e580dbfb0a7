from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import ModelHook, add_hook_to_module
from tests.analysis.test_calibration_pass import handed_over
from tests.attention.cases import Largest
from tests.evaluation.tiny_models import tiny
from tests.patching import contents
from tests.reference import alibi
from tests.reference import inspection as oracle
from torch import Tensor, nn

from ropewalk.analysis import attention_capture as ear
from ropewalk.analysis import attention_rows as rows
from ropewalk.analysis.calibration_pass import measure
from ropewalk.analysis.head_scores import scores
from ropewalk.analysis.inspect import Inspection, inspect
from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.fire import FIRE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE, rotate
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.encodings.t5 import T5Bias
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError, RopewalkError, UnsupportedModelError
from ropewalk.heads import HeadSelection
from ropewalk.hub.plan import Plan
from ropewalk.patching import install, installed
from ropewalk.scaling import NTK, YaRN

TOKENS, NEEDLE = 120, (20, 26)
IDS = torch.arange(TOKENS) * 37 % 590 + 3


def weights_of(model: Any, ids: Tensor = IDS) -> list[Tensor]:
    """Each layer's attention matrix (H, N, N), as the model's own eager attention gives it."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return [found[0] for found in model(ids[None], output_attentions=True, use_cache=False).attentions]
    finally:
        model.set_attn_implementation(before)


def agree(found: Inspection, weights: list[Tensor]) -> None:
    """Sinks and needle mass are those of the whole matrices."""
    for layer, matrix in enumerate(weights):
        for head in range(matrix.shape[0]):
            expected = oracle.sinks(matrix[head].double().numpy(), 4)
            for name in ("first", "few", "largest"):
                assert float(found[f"sinks.{name}"][layer, head]) == pytest.approx(expected[name], abs=1e-5), name
            if expected["largest"] > 1e-3:
                assert int(found["sinks.largest_at"][layer, head]) == expected["largest_at"]
        mass = matrix[:, -1, slice(*NEEDLE)].sum(-1)
        torch.testing.assert_close(found["needle.before"][layer], mass, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral", "Gemma2", "Gemma3", "GPTNeoX", "StableLm", "SmolLM3"])
def test_each_family_gives_the_sinks_of_its_own_attention_matrices(family: str) -> None:
    model = tiny(family)
    agree(inspect(model, IDS, NEEDLE), weights_of(model))


def test_windows_are_told_and_seen() -> None:
    found = inspect(tiny("Gemma3"), IDS)
    assert found.about["windows"] == [32, None, 32, None]
    # No query that counts sees the first token through a window of 32.
    assert found["sinks.first"][[0, 2]].eq(0).all() and found["sinks.first"][[1, 3]].gt(0).all()


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "StableLm", "Gemma3"])
def test_scores_are_those_of_measure(family: str) -> None:
    model = tiny(family)
    found, known = inspect(model, IDS), measure(model, IDS[None], stages=("pre_ntk", "post_ntk"))
    assert found.stages == ("pre_ntk", "post_ntk")
    for name, score in scores().items():
        for r in (1, 3) if score.needs_r else (None,):
            for side in ("query", "key"):
                for stage in found.stages:
                    one, other = (x.score(name, r, side, stage) for x in (found, known))
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "Qwen3"])
def test_usage_cone_and_directions_are_those_of_the_models_own_vectors(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    found = inspect(model, IDS)
    own: Any = RoPE.from_model(model)
    torch.testing.assert_close(found["frequencies"], own.schedule().frequencies.expand(4, -1))
    places = found["low_rank.places"].tolist()
    assert places == list(range(TOKENS))
    for layer, pair in enumerate(handed_over(model, monkeypatch, input_ids=IDS[None])):
        for side, x in zip(("query", "key"), pair, strict=True):
            turned = rotate(x, *own.tables(torch.arange(TOKENS)), own.layout)[0].double().numpy()
            head, f = layer % turned.shape[0], layer % (own.width // 2)
            used = oracle.usage(turned[head], f, own.layout, own.width)
            assert float(found[f"usage.{side}"][layer, head, f]) == pytest.approx(used, rel=1e-4)
            for name, value in zip(
                ("gamma", "bound", "measured"), oracle.cone(turned[head], f, own.layout, own.width), strict=True
            ):
                assert float(found[f"cone.{name}.{side}"][layer, head, f]) == pytest.approx(value, rel=1e-3, abs=1e-3)
            squared = oracle.squared_cosines(turned[head], places, 2)
            np.testing.assert_allclose(found[f"low_rank.{side}"][layer, head, :, :2].double() ** 2, squared, atol=3e-3)


def test_layers_that_do_not_rotate_have_frequencies_of_zero() -> None:
    found = inspect(tiny("SmolLM3"), IDS)
    assert found.layers == (0, 1, 2, 3)
    assert found["frequencies"].eq(0).all(-1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("options", [{}, {"rotary_dim": 8}, {"delta": "none"}, {"magnitude": "identity"}])
def test_pope_is_looked_at_where_it_acts(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama")
    pairs = handed_over(model, monkeypatch, input_ids=IDS[None])
    install(model, PoPE(16, 2, **options))
    contents.learn(model)
    found = inspect(model, IDS, NEEDLE)
    agree(found, weights_of(model))
    width = options.get("rotary_dim", 16)
    assert found.stages == ("post_ntk",) and found["shares.post_ntk.key"].shape == (4, 2, 16 + width)
    assert found["frequencies"].shape == (4, width) and found.about["encoding"]["kind"] == "pope"
    # Layers above the first see what PoPE made of the text.
    for side, x in zip(("query", "key"), pairs[0], strict=True):
        content = x[0, ..., :width]
        magnitude = content.abs() if "magnitude" in options else F.softplus(content)
        torch.testing.assert_close(found[f"usage.{side}"][0], magnitude.mean(1), rtol=1e-4, atol=1e-5)
    if options.get("delta") == "none":
        assert "delta" not in found
    else:
        learned = torch.stack(list(contents.learned(model).values()))
        torch.testing.assert_close(found["delta"], learned.clamp(-2 * math.pi, 0))


def slow_weights(q: Tensor, k: Tensor, scale: float, bias: Callable[[int, int], list[float]]) -> Tensor:
    """(H, N, N) in float64: softmax of each query's products with the tokens up to it and what is added."""
    heads, number = q.shape[0], q.shape[1]
    found = torch.zeros(heads, number, number, dtype=torch.float64)
    keys = k.repeat_interleave(heads // k.shape[0], 0).double()
    for n in range(number):
        added = torch.tensor([bias(n, m) for m in range(n + 1)], dtype=torch.float64).T
        scores = (keys[:, : n + 1] @ q[:, n].double()[:, :, None])[..., 0] * scale + added
        found[:, n, : n + 1] = scores.softmax(-1)
    return found


def bias_of(model: Any, encoding: Any) -> Callable[[int, int], list[float]]:
    """What the installed bias kind adds to the score of a query and a key in each head of the first layer."""
    if isinstance(encoding, ALiBi):
        return lambda n, m: alibi.bias(encoding.num_heads, n, m)
    places, module = torch.arange(TOKENS), model.model.layers[0].self_attn.position_encoding
    table: Tensor = module.bias(places, places).detach()
    return lambda n, m: table[:, n, m].tolist()


@pytest.mark.parametrize("encoding", [ALiBi(4), T5Bias(4), KERPLE(4), FIRE(4)], ids=lambda encoding: encoding.kind)
def test_a_bias_is_in_the_weights_and_its_heads_have_no_bands(
    encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("Llama", num_hidden_layers=1)
    ((q, k),) = handed_over(model, monkeypatch, input_ids=IDS[None])
    install(model, encoding)
    contents.learn(model)
    found = inspect(model, IDS, NEEDLE)
    agree(found, [slow_weights(q[0], k[0], 16**-0.5, bias_of(model, encoding)).float()])
    assert not found.has_bands and found.stages == ("post_ntk",) and found.about["layout"] is None
    assert not any(name.startswith(("usage", "cone", "band_entropy", "frequencies")) for name in found.tensors)
    # Queries and keys are compared as the model made them.
    for side, x in (("query", q[0]), ("key", k[0])):
        x = x.double()
        shares = torch.linalg.eigvalsh(x.mT @ x).flip(-1)
        torch.testing.assert_close(
            found[f"shares.post_ntk.{side}"][0].double(), shares / shares.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4
        )
    with pytest.raises(ArgumentError, match="no bands"):
        found.score("band_entropy")


@pytest.mark.parametrize(
    "encoding", [Learned(64, 256), SelfExtend(RoPE(16), window=20, group=4), XPos(16)], ids=lambda e: e.kind
)
def test_other_encodings_without_bands_are_looked_at_too(encoding: Encoding) -> None:
    model = tiny("Llama")
    plain = inspect(model, IDS, NEEDLE)
    install(model, encoding)
    found = inspect(model, IDS, NEEDLE)
    assert not found.has_bands and found.about["encoding"]["kind"] == encoding.kind
    assert (found["needle.before"] - plain["needle.before"]).abs().max() > 1e-3
    assert found.stages == (("pre_ntk", "post_ntk") if isinstance(encoding, XPos) else ("post_ntk",))


PLANS: dict[str, Encoding] = {
    "ntk": RoPE(16, rule=NTK(3.0)),
    "yarn": RoPE(16, rule=YaRN(4.0, 256)),
    "own keys": DoPE(RoPE(16, rule=NTK(3.0)), HeadSelection([(0, 1), (2, 0), (2, 3)]), original_length=60),
    "noise": DoPE(RoPE(16), HeadSelection([(1, 2), (1, 3)]), mode="gaussian", original_length=60),
    "nope": NoPE(),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_needle_is_looked_at_before_and_after_a_plan(name: str) -> None:
    model = tiny("Llama")
    plan = Plan.of(model, PLANS[name], 512)
    found = inspect(model, IDS, NEEDLE, plan)
    agree(found, weights_of(model))
    with plan.installed(model, when="always"):
        after = torch.stack([matrix[:, -1, slice(*NEEDLE)].sum(-1) for matrix in weights_of(model)])
    torch.testing.assert_close(found["needle.after"], after, atol=1e-5, rtol=0)
    assert (after - found["needle.before"]).abs().max() > 1e-3
    assert found.about["plan"] == PLANS[name].to_dict()


@pytest.mark.parametrize("encoding", [SelfExtend(RoPE(16), window=20, group=4), ALiBi(4)])
def test_a_plan_may_be_of_any_kind_that_acts_on_scores(encoding: Encoding) -> None:
    model = tiny("Llama")
    found = inspect(model, IDS, NEEDLE, Plan.of(model, encoding, 512))
    assert (found["needle.after"] - found["needle.before"]).abs().max() > 1e-3


@pytest.mark.parametrize("encoding", [PLANS["ntk"], PLANS["own keys"], NoPE()])
def test_a_model_with_an_encoding_is_looked_at_as_it_is(encoding: Encoding) -> None:
    model = tiny("Llama")
    handle = install(model, encoding, cache="content" if encoding is PLANS["ntk"] else None)
    found = inspect(model, IDS, NEEDLE)
    if not isinstance(
        encoding, RoPE
    ):  # eager attention with own keys or none has the weights; content is rotated later
        agree(found, weights_of(model))
    assert found["shares.post_ntk.key"].shape == (4, 2, 16)
    rope = {"rope": PLANS["ntk"], "dope": PLANS["ntk"]}.get(encoding.kind)
    expected = torch.zeros(8) if rope is None else rope.schedule().frequencies  # type: ignore[attr-defined]
    torch.testing.assert_close(found["frequencies"], expected.expand(4, -1))
    handle.remove()
    if isinstance(encoding, RoPE):
        with installed(model, encoding):
            agree(found, weights_of(model))


def test_below_its_length_a_long_plan_is_plain() -> None:
    model = tiny("Llama")
    plain = inspect(model, IDS)
    with installed(model, PLANS["ntk"], when="long", original_length=256):
        found = inspect(model, IDS)
    assert all(torch.equal(found[name], plain[name]) for name in plain.tensors)


def test_one_text_alone_or_as_a_batch_of_one_and_the_size_of_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("Llama")
    found = [inspect(model, IDS, NEEDLE), inspect(model, IDS[None], NEEDLE)]
    monkeypatch.setattr(rows, "TILE", 300)
    monkeypatch.setattr(rows, "LEAST_ROWS", 2)
    found.append(inspect(model, IDS, NEEDLE))
    for name in found[0].tensors:
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], found[2][name], rtol=1e-5, atol=1e-6)


def test_a_sample_of_the_queries_is_said_and_close() -> None:
    model = tiny("Llama")
    every, some = inspect(model, IDS), inspect(model, IDS, queries=14)
    assert (every.about["queries"], some.about["queries"]) == (56, 14)
    assert 0 < (every["sinks.first"] - some["sinks.first"]).abs().max() < 0.2


def test_what_the_model_computes_stays_as_it_is() -> None:
    model = tiny("Llama")
    logits = model(IDS[None]).logits
    calls: list[tuple[int, int]] = []
    inside: list[Tensor] = []
    with ear.listening(model, lambda _: None):
        inside.append(model(IDS[None]).logits)
    assert torch.equal(inside[0], logits)
    inspect(model, IDS, NEEDLE, Plan.of(model, PLANS["own keys"], 512), on_layer=lambda *step: calls.append(step))
    assert calls == [(i, 8) for i in range(1, 9)]
    assert not any("forward" in module.__dict__ for module in model.modules())
    with pytest.raises(RuntimeError, match="stop"), ear.listening(model, lambda _: None):
        raise RuntimeError("stop")
    assert not any("forward" in module.__dict__ for module in model.modules())
    with installed(model, PLANS["ntk"]):
        kept = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
        inspect(model, IDS)
        assert {name: module.__dict__.get("forward") for name, module in model.named_modules()} == kept


def test_a_device_hook_is_called_and_stays() -> None:
    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    model: Any = tiny("Llama")
    plain, attention, hook = inspect(model, IDS), model.model.layers[1].self_attn, Counting()
    add_hook_to_module(attention, hook)
    hooked, held = attention.forward, attention._old_forward
    found = inspect(model, IDS)
    assert hook.calls == 1 and attention.forward is hooked and attention._old_forward is held
    assert torch.equal(found["sinks.first"], plain["sinks.first"])


def test_no_tensor_is_as_large_as_all_pairs() -> None:
    model = tiny("Llama", max_position_embeddings=4096)
    with Largest() as largest:
        inspect(model, torch.arange(2500) * 37 % 590 + 3, NEEDLE)
    assert largest.numbers <= rows.TILE < 2500 * 2500 / 8


def test_unequal_heads_are_refused() -> None:
    model = tiny("Llama")
    layer: Any = model.model.layers[1].self_attn  # type: ignore[union-attr, attr-defined]
    layer.q_proj = nn.Linear(64, 32, bias=False)
    layer.o_proj = nn.Linear(32, 64, bias=False)
    layer.num_key_value_groups = 1
    with pytest.raises(UnsupportedModelError, match="differ in number or size"):
        inspect(model, IDS)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"input_ids": IDS[:64]}, "input_ids"),
        ({"input_ids": IDS.reshape(2, 60)}, "input_ids.shape"),
        ({"needle": (20, 20)}, "needle"),
        ({"needle": (20, TOKENS)}, "needle"),
        ({"first_tokens": 0}, "first_tokens"),
        ({"queries": 0}, "queries"),
        ({"plan": True}, "needle"),
    ],
)
def test_wrong_input_is_named_and_the_model_left_as_it_was(changed: dict[str, Any], named: str) -> None:
    model = tiny("Llama")
    if "plan" in changed:
        changed = {"plan": Plan.of(model, PLANS["ntk"], 512)}
    with pytest.raises(ArgumentError, match=named):
        inspect(model, **({"input_ids": IDS} | changed))
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_models_and_encodings_that_cannot_be_served_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear"):
        inspect(nn.Linear(2, 2), IDS)
    model = tiny("Llama")
    mixed = PerLayer(tuple((layer, ALiBi(4) if layer else RoPE(16)) for layer in range(4)))
    with installed(model, mixed), pytest.raises(UnsupportedModelError, match="or in having bands"):
        inspect(model, IDS)
    with installed(model, PLANS["ntk"]):
        with pytest.raises(ArgumentError, match="larger model"):
            inspect(model.model, IDS)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="remove"):
            inspect(model, IDS, NEEDLE, Plan.of(model, PLANS["yarn"], 512))
    model.set_attn_implementation("flex_attention")
    with pytest.raises(RopewalkError, match="sdpa"):
        inspect(model, IDS)


def test_weights_that_are_not_the_layers_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    model = tiny("Llama")
    model.set_attn_implementation("eager")
    home = importlib.import_module(type(model).__module__)
    real = home.eager_attention_forward

    def odd(*args: Any, **kwargs: Any) -> Any:
        found, weights = real(*args, **kwargs)
        return found * torch.linspace(1, 1.01, found.shape[1])[:, None, None], weights

    inspect(model, IDS)
    monkeypatch.setattr(home, "eager_attention_forward", odd)
    with pytest.raises(UnsupportedModelError, match=r"model.layers.0.self_attn.*output differs"):
        inspect(model, IDS)
