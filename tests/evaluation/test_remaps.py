"""Position remaps as candidates of `extend`."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.tiny_models import tiny

from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.candidates import rotation_to_stretch
from ropewalk.evaluation.remaps import is_rotation, remap_candidates
from ropewalk.hf import installed


@pytest.mark.parametrize(("original", "target"), [(256, 300), (256, 512), (8192, 11000), (8192, 16384), (100, 1000)])
def test_no_distance_is_above_the_training_length(original: int, target: int) -> None:
    model = tiny("Llama")
    found = remap_candidates(model, RoPE.from_model(model), original, target)
    assert [c.name.split()[0] for c in found] == ["self_extend", "dual_chunk", "rerope"]
    for candidate in found:
        assert isinstance(candidate.encoding, Remap)
        assert candidate.encoding.largest_distance(target) < original, candidate.name


@torch.no_grad()
def test_each_reads_past_its_window_and_changes_the_model() -> None:
    model = tiny("Llama")
    ids = torch.arange(300)[None] % 500
    plain = model(ids).logits
    for candidate in remap_candidates(model, RoPE.from_model(model), 256, 300):
        with installed(model, candidate.encoding):
            changed = model(ids).logits
        assert torch.isfinite(changed).all()
        assert torch.allclose(changed[:, :64], plain[:, :64], atol=1e-4), candidate.name  # all within every window
        assert not torch.allclose(changed[:, -1], plain[:, -1], atol=1e-4), candidate.name


def test_layers_with_a_window_keep_their_rotation() -> None:
    model = tiny("Mistral", sliding_window=32)
    model.config.layer_types = ["sliding_attention", "full_attention"] * 2
    own, stretched = rotation_to_stretch(model, 256)
    assert isinstance(own, PerLayer)
    for candidate in remap_candidates(model, own, 256, 300, stretched):
        assert [isinstance(candidate.encoding.at(layer), Remap) for layer in range(4)] == [False, True] * 2
        assert not is_rotation(candidate.encoding)


def test_a_model_whose_attention_cant_have_them_has_none() -> None:
    model = tiny("Gemma2")  # its scores are capped before the softmax
    own, stretched = rotation_to_stretch(model, 256)
    assert remap_candidates(model, own, 256, 300, stretched) == []
    assert not hasattr(model, "_ropewalk_handle")


def test_one_rotation_a_layer_is_told_from_a_remap() -> None:
    rope = RoPE(16)
    assert is_rotation(rope) and is_rotation(PerLayer(((0, rope), (1, NoPE()))))
    assert not is_rotation(NoPE())
