"""What is refused before anything is touched, and models that can't be asked because they have no weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.patching import families

from ropewalk.encodings.absolute import Learned, Sinusoidal
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dape import DAPE
from ropewalk.encodings.dape_v2 import DAPEv2
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.rope_plus_plus import RoPEPlusPlus
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError, RopewalkError, UnsupportedModelError
from ropewalk.heads import HeadSelection
from ropewalk.patching import install, installed


@pytest.fixture
def model() -> Any:
    return families.build("llama")


def dope(model: Any, mode: str = "all") -> DoPE:
    return DoPE(RoPE.from_model(model), HeadSelection([(0, 0), (2, 2), (2, 3)]), mode, original_length=16)


def every(last: int, encoding: Encoding) -> PerLayer:
    """The same in the model's three layers and in layer `last`."""
    return PerLayer(tuple((i, encoding) for i in sorted({0, 1, 2, last})))


BAD = [
    (lambda m: DoPE(RoPE(8), HeadSelection([(3, 0)])), "heads=(3, 0): the model's rotary layers are 0 to 2"),
    (lambda m: DoPE(RoPE(8), HeadSelection([(0, 4)])), "heads=(0, 4): the layer has query heads 0 to 3"),
    (lambda m: RoPE(16), "head_dim=16: layer 0 has heads of 8"),
    (lambda m: RoPE(4), "head_dim=4: layer 0 has heads of 8"),
    (lambda m: DoPE(RoPE(16), HeadSelection([(0, 0)])), "head_dim=16"),
    (lambda m: RoPEPlusPlus(RoPE(4)), "head_dim=4: layer 0 has heads of 8"),
    (lambda m: SelfExtend(RoPE(4), window=4), "head_dim=4: layer 0 has heads of 8"),
    (lambda m: ReRoPE(RoPE(16), window=4), "head_dim=16: layer 0 has heads of 8"),
    (lambda m: DualChunk(RoPE(4), 16), "head_dim=4: layer 0 has heads of 8"),
    (lambda m: XPos(16), "head_dim=16: layer 0 has heads of 8"),
    (lambda m: XPos(4), "head_dim=4: layer 0 has heads of 8"),
    (lambda m: RoPEPlusPlus(RoPE(8), imaginary=(9,)), "imaginary=(9,): the layer has query heads 0 to 3"),
    (lambda m: DAPE(8, ALiBi(8)), "num_heads=8: layer 0 has 4 query heads"),
    (lambda m: DAPEv2(2), "num_heads=2: layer 0 has 4 query heads"),
    (lambda m: Sinusoidal(64), "width=64: the model's token vectors have 32 channels"),
    (lambda m: Learned(16, 64), "width=16: the model's token vectors have 32 channels"),
    (lambda m: PerLayer(((0, RoPE(8)),)), "layer=1: no encoding for it"),
    (lambda m: every(3, RoPE(8)), "layers=3: the model's rotary layers are 0 to 2"),
    (lambda m: SelfExtend(every(9, RoPE(8)), window=4), "layers=9: the model's rotary layers are 0 to 2"),
    (lambda m: every(2, DoPE(every(5, RoPE(8)), HeadSelection([(0, 0)]))), "layers=5: the model's rotary layers"),
    (lambda m: "rope", "encoding='rope'"),
]


@pytest.mark.parametrize(("make", "text"), BAD, ids=[text[:30] for _, text in BAD])
def test_bad_arguments_are_refused_before_anything_is_touched(model, make, text):
    before = {path: dict(vars(m)) for path, m in model.named_modules()}
    with pytest.raises(RopewalkError) as caught:
        install(model, make(model))
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert {path: dict(vars(m)) for path, m in model.named_modules()} == before


def test_a_width_beyond_what_the_layer_hands_over():
    model = families.build("phi")
    own: Any = RoPE.from_model(model)
    with pytest.raises(ArgumentError, match=f"rotary_dim=8: layer 0 hands over {own.width} channels"):
        install(model, RoPE(8))


def test_xpos_where_a_layer_hands_over_the_channels_that_it_turns():
    model: Any = families.build("phi")
    own: Any = RoPE.from_model(model)
    with pytest.raises(ArgumentError, match=f"head_dim=8: layer 0 hands over {own.width} channels"):
        install(model, XPos(8))
    with installed(model, XPos(own.width)):
        model(families.tokens(1, 6))


def test_a_dtype_too_narrow_for_xpos(model):
    model.half()
    before = {path: dict(vars(m)) for path, m in model.named_modules()}
    with pytest.raises(ArgumentError, match=r"dtype=torch.float16: .* use torch.bfloat16 or torch.float32"):
        install(model, XPos(8))
    assert {path: dict(vars(m)) for path, m in model.named_modules()} == before


@pytest.mark.parametrize(("family", "option"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")])
def test_scores_of_an_encodings_own_where_the_model_changes_scores(family, option):
    model: Any = families.build(family)
    own: Any = RoPE.from_model(model)
    before = {path: dict(vars(m)) for path, m in model.named_modules()}
    with pytest.raises(UnsupportedModelError, match=rf"Attention .*\({option}\): .* give a length rule"):
        install(model, DualChunk(own, 12))
    assert {path: dict(vars(m)) for path, m in model.named_modules()} == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"when": "allways"}, "did you mean always"),
        ({"when": "long", "original_length": 0}, "original_length=0"),
        ({"when": "long", "original_length": 2.5}, "original_length=2.5"),
    ],
)
def test_bad_options(model, options, text):
    with pytest.raises(ArgumentError, match=text):
        install(model, NoPE(), **options)


def test_what_is_no_hugging_face_model():
    with pytest.raises(UnsupportedModelError, match="Linear"):
        install(torch.nn.Linear(2, 2), NoPE())


def test_a_failing_pass_is_refused_and_leaves_no_trace(model):
    attention = model.model.layers[2].self_attn

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("first line\nsecond line")

    attention.o_proj.forward = broken
    before = {path: dict(vars(m)) for path, m in model.named_modules()}
    with pytest.raises(UnsupportedModelError, match="RuntimeError: first line") as caught:
        install(model, NoPE())
    assert "\n" not in str(caught.value)
    assert {path: dict(vars(m)) for path, m in model.named_modules()} == before


@torch.no_grad()
def test_a_model_without_weights_is_served_by_its_config():
    with torch.device("meta"):
        model = families.build("llama")
    x = families.tokens(1, 6).to("meta")
    assert RoPE.from_model(model) == RoPE(8, rotary_dim=8)
    with installed(model, dope(model)):
        assert model(x).logits.shape == (1, 6, families.VOCABULARY)
    for head in ((0, 9), (5, 0)):
        with pytest.raises(ArgumentError, match=f"{head[0]}, {head[1]}"):
            install(model, DoPE(RoPE(8), HeadSelection([head])))


@torch.no_grad()
def test_the_encoder_follows_its_layer_to_another_device(model):
    with installed(model, dope(model, "parts")):
        assert model.to("meta")(families.tokens(1, 6).to("meta")).logits.device.type == "meta"
