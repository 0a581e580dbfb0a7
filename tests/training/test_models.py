"""Models to train: the same weights whatever the encoding, dropout where the recipe wants it, tables long enough."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.training.tiny import SIZE
from torch import Tensor, nn

from ropewalk.errors import ArgumentError
from ropewalk.patching.handle import handle_of
from ropewalk.training.config import ModelSize
from ropewalk.training.models import build_model, is_own, shape, sizes
from ropewalk.training.presets import NAMES, named


def built(name: str, size: ModelSize = SIZE, seed: int = 0) -> nn.Module:
    return build_model(size, 12, 9, named(name, shape(size, 9)), seed)


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_are_those_of_any_other_encoding(name: str) -> None:
    plain = dict(built("nope").named_parameters())
    found = dict(built(name).named_parameters())
    assert {n for n in found if not is_own(n)} == set(plain)
    assert all(torch.equal(found[n], plain[n]) for n in plain)


def test_seeds_make_weights_and_what_encodings_draw() -> None:
    def delta(seed: int) -> Tensor:
        return next(p for n, p in built("pope-uniform", seed=seed).named_parameters() if is_own(n))

    state = torch.random.get_rng_state()
    assert torch.equal(delta(3), delta(3)) and not torch.equal(delta(3), delta(4))
    weights = [next(iter(built("rope", seed=seed).parameters())) for seed in (3, 4)]
    assert not torch.equal(*weights)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sizes_are_the_recipes() -> None:
    size = ModelSize(hidden=32, heads=4, kv_heads=2, layers=3, intermediate=40, tied=True)
    model = built("pope", size)
    c = model.config
    assert (c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim) == (32, 4, 2, 8)
    assert (c.num_hidden_layers, c.intermediate_size, c.vocab_size, c.max_position_embeddings) == (3, 40, 12, 9)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all("bias" not in name for name, _ in model.named_parameters())
    handle = handle_of(model)
    assert handle is not None and handle.encoding == named("pope", shape(size, 9)).encoding
    assert sizes(model) == {"parameters": model.num_parameters(), "own_parameters": 3 * 2 * 8}
    assert sizes(built("rope"))["own_parameters"] == 0


def test_first_weights_are_as_wide_as_the_recipe_says() -> None:
    wide = dict(built("pope", ModelSize(hidden=64, heads=4, layers=2, initial=0.125)).named_parameters())
    drawn = {n: p for n, p in wide.items() if p.dim() > 1 and not is_own(n)}
    assert len(drawn) == 2 + 2 * 7
    assert all(0.11 < p.std().item() < 0.14 for p in drawn.values())
    narrow = built("pope", ModelSize(hidden=64, heads=4, layers=2))
    assert narrow.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_dropout_is_on_tokens_and_on_what_each_layer_adds_and_only_in_training() -> None:
    model = built("rope", dataclasses.replace(SIZE, dropout=0.5))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.eval()(ids).logits, built("rope").eval()(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    layer = model.model.layers[1]
    for part in (model.model.embed_tokens, layer.self_attn.o_proj, layer.mlp.down_proj):
        given = ids if part is model.model.embed_tokens else torch.randn(4, part.in_features)
        share = (part(given) == 0).float().mean()
        assert 0.2 < share < 0.8


def test_attention_dropout_is_the_models_own() -> None:
    model = built("rope", dataclasses.replace(SIZE, attention_dropout=0.5)).train()
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("name", "said"), [("learned", "model.positions=8"), ("xpos", "28329")])
def test_sequences_past_what_an_encoding_reaches_are_refused(name: str, said: str) -> None:
    short = dataclasses.replace(SIZE, positions=8)
    longest = 9 if name == "learned" else 28_330
    with pytest.raises(ArgumentError, match=said):
        build_model(short, 12, longest, named(name, shape(short, longest)), 0)
    build_model(short, 12, 9, named("rope", shape(short, 9)), 0)
