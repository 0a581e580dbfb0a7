"""Encodings for trained models by name: fitted to the model's own rotation, and put in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.patching import families

from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.rope_plus_plus import RoPEPlusPlus
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError
from ropewalk.patching import install
from ropewalk.patching.handle import handle_of
from ropewalk.scaling import NTK, YaRN
from ropewalk.training.swap import SWAPS, check_fit, check_name, encoding_for, swap


@pytest.fixture
def llama() -> Any:
    return families.build("llama")


def test_the_models_own_base_width_and_heads_are_taken(llama: Any) -> None:
    own = RoPE.from_model(llama)
    kv_heads = llama.config.num_key_value_heads
    pope = encoding_for(llama, "pope", 16)
    assert isinstance(pope, PoPE) and (pope.base, pope.num_kv_heads, pope.width) == (own.base, kv_heads, own.rotary_dim)
    assert encoding_for(llama, "own", 16) is None and encoding_for(llama, "nope", 16) == NoPE()
    assert encoding_for(llama, "rope", 16) == own
    assert encoding_for(llama, "rope_plus_plus", 16) == RoPEPlusPlus(own)
    xpos = encoding_for(llama, "xpos", 16)
    assert isinstance(xpos, XPos) and xpos.base == own.base


def test_a_base_and_a_width_of_its_own_are_kept() -> None:
    model = families.build("gpt_neox")
    own = RoPE.from_model(model)
    assert own.rotary_dim is not None and own.rotary_dim < own.head_dim
    made = encoding_for(model, "pope", 16)
    assert isinstance(made, PoPE) and made.width == own.rotary_dim and made.head_dim == own.head_dim
    swap(model, made, 0)
    model(families.tokens(1, 6))


def test_layers_that_differ_get_each_their_own() -> None:
    model = families.build("gemma3_text")
    made = encoding_for(model, "pope", 16)
    assert isinstance(made, PerLayer)
    assert {one.base for _, one in made.layers} == {layer.base for _, layer in RoPE.from_model(model).layers}  # type: ignore


def test_a_length_rule_is_told_the_training_length(llama: Any) -> None:
    original = llama.config.max_position_embeddings
    made = encoding_for(llama, "yarn", 4 * original)
    assert isinstance(made, RoPE) and made.rule == YaRN(4.0, original)
    given = encoding_for(llama, "ntk", original, factor=3.0)
    assert isinstance(given, RoPE) and given.rule == NTK(3.0)


@pytest.mark.parametrize(
    ("name", "length", "factor", "said"),
    [
        ("poep", 8, None, "did you mean pope"),
        ("drope", 8, None, "encoding='drope'"),
        ("longrope", 8, None, "encoding='longrope'"),
        ("pope", 8, 2.0, "factor=2.0: is for length rules"),
        ("own", 8, 2.0, "factor=2.0"),
        ("yarn", 8, None, "yarn would change nothing"),
        ("yarn", 8, 0.5, "factor=0.5"),
    ],
)
def test_what_cant_be_is_refused(llama: Any, name: str, length: int, factor: float | None, said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        encoding_for(llama, name, length, factor)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_name_fits_a_model_and_changes_it(llama: Any) -> None:
    before = llama(families.tokens(1, 8)).logits
    for name in SWAPS:
        check_name(name)
        made = encoding_for(llama, name, 4096)
        check_fit(llama, made)
        assert torch.equal(llama(families.tokens(1, 8)).logits, before)
        swap(llama, made, 0)
        changed = not torch.allclose(llama(families.tokens(1, 8)).logits, before, atol=1e-6)
        assert changed == (name not in ("own", "rope")), name
        if made is not None:
            handle_of(llama).remove()  # type: ignore[union-attr]


def test_a_swap_takes_the_place_of_what_was_there_and_draws_by_the_seed(llama: Any) -> None:
    install(llama, NoPE())
    check_fit(llama, encoding_for(llama, "pope-uniform", 8))  # doesn't touch what is there
    assert handle_of(llama).encoding == NoPE()  # type: ignore[union-attr]
    state = torch.random.get_rng_state()
    deltas = []
    for seed in (0, 0, 1):
        swap(llama, encoding_for(llama, "pope-uniform", 8), seed)
        deltas.append(next(p.detach().clone() for n, p in llama.named_parameters() if "delta" in n))
    assert torch.equal(deltas[0], deltas[1]) and not torch.equal(deltas[0], deltas[2])
    assert torch.equal(torch.random.get_rng_state(), state)
    swap(llama, None, 0)
    assert isinstance(handle_of(llama).encoding, PoPE)  # type: ignore[union-attr]
