"""Every architecture family that the seam serves: its weights are heard as they are, or it is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.patching import families
from tests.reference import inspection as oracle

from ropewalk.analysis.attention_capture import Heard, listening
from ropewalk.analysis.inspect import inspect
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import UnsupportedModelError
from ropewalk.heads import HeadSelection
from ropewalk.patching import installed

TOKENS, NEEDLE = 90, (10, 14)
REFUSED = {
    "diffllama": "attends more than once",  # two maps of one head, subtracted
    "falcon": "doesn't look up ALL_ATTENTION_FUNCTIONS",
    "mimo_v2_flash": "differ in number or size",
}
SERVED = sorted(set(families.SERVED) - set(REFUSED))


def built(name: str) -> Any:
    # A window longer than what counts as recent, or there would be nothing to see in it.
    changes: dict[str, Any] = {"sliding_window": 30} if "sliding_window" in families.SERVED[name] else {}
    if name == "gemma2":  # a cap that these scores do reach
        changes["attn_logit_softcapping"] = 0.5
    return families.build(name, **changes)


@pytest.mark.parametrize("name", SERVED)
def test_sinks_and_needle_are_those_of_the_layers_own_matrices(name: str) -> None:
    model, ids = built(name), families.tokens(1, TOKENS)
    found = inspect(model, ids, NEEDLE)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True, use_cache=False).attentions
    for row, layer in enumerate(found.layers):
        for head in range(4):
            matrix = weights[layer][0, head].double().numpy()
            expected = oracle.sinks(matrix, 4)
            for kind in ("first", "few", "largest"):
                assert float(found[f"sinks.{kind}"][row, head]) == pytest.approx(expected[kind], abs=1e-5), kind
            mass = float(matrix[-1, slice(*NEEDLE)].sum())
            assert float(found["needle.before"][row, head]) == pytest.approx(mass, abs=1e-5)
    turning = families.ROTATING_LAYERS.get(name, found.layers)
    assert found["frequencies"].gt(0).all(-1).tolist() == [layer in turning for layer in found.layers]


@pytest.mark.parametrize("cache", [None, "content"])
@pytest.mark.parametrize("kind", ["self_extend", "rerope", "dual_chunk", "dope"])
def test_under_a_remap_the_weights_heard_give_each_layers_own_output(kind: str, cache: Any) -> None:
    """Whatever a cache holds: keys as they are read from afar, or content."""
    model, ids = built("llama"), families.tokens(1, TOKENS)
    rope = RoPE.from_model(model)
    far = SelfExtend(rope, 20, 3)
    remaps = {"self_extend": far, "rerope": ReRoPE(rope, 20), "dual_chunk": DualChunk(rope, 30)}
    encoding = DoPE(far, HeadSelection([(0, 1), (1, 2)]), view="far") if kind == "dope" else remaps[kind]
    heard: list[Heard] = []
    outputs: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    with installed(model, encoding, cache=cache), torch.no_grad():
        layers = [m for name, m in model.named_modules() if name.endswith(".self_attn")]
        hooks = [m.o_proj.register_forward_pre_hook(lambda _, given: outputs.append(given[0])) for m in layers]
        values = [m.v_proj.register_forward_hook(lambda _, __, out: kept.append(out)) for m in layers]
        with listening(model, heard.append):
            model(ids, use_cache=False)
        for hook in (*hooks, *values):
            hook.remove()
        found = inspect(model, ids, NEEDLE)
    assert len(heard) == len(layers) == len(outputs) and found.layers == tuple(one.index for one in heard)
    for one, output, value in zip(heard, outputs, kept, strict=True):
        wanted = output[0].unflatten(-1, (one.rows.num_heads, -1))
        v = value[0].unflatten(-1, (-1, wanted.shape[-1])).transpose(0, 1)
        size = one.rows.num_heads // v.shape[0]
        for group, heads in enumerate(one.rows.scores.groups):
            begin, weights = one.rows.weights(group, torch.arange(TOKENS))
            got = weights @ v[[head // size for head in heads], begin : begin + weights.shape[-1]]
            torch.testing.assert_close(got.transpose(0, 1), wanted[:, list(heads)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_by_name_and_left_as_they_were(name: str) -> None:
    model = built(name)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
        inspect(model, families.tokens(1, TOKENS))
    assert not any("forward" in module.__dict__ for module in model.modules())
