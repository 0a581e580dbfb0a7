"""Where the positions of models end, and which tokens they know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.evaluation.tiny_models import tiny
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from ropewalk.analysis.calibration_pass import measure
from ropewalk.analysis.inspect import inspect
from ropewalk.encodings.absolute import Learned
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.likelihood import token_nll
from ropewalk.evaluation.prefix_sharing import SharedReading
from ropewalk.evaluation.reader import Reader
from ropewalk.patching import installed
from ropewalk.patching.input_limits import check_reach, check_vocabulary, reach


def test_a_models_own_table_ends() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=40, n_embd=32, n_layer=1, n_head=2))
    opt = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=48,
    )
    assert reach(gpt2) == 40 and reach(OPTForCausalLM(opt)) == 48
    assert reach(tiny("Llama")) is None
    # The tokens' vectors aren't a table of positions, however many there are.
    assert reach(tiny("Llama", vocab_size=256)) is None


@pytest.mark.parametrize(
    ("encoding", "longest"),
    [
        (Learned(64, 100), 100),
        (XPos(16), XPos(16).last_position + 1),
        (ALiBi(4), None),
        # Its last position is one between a query and a key, which a text of any length has.
        (DualChunk(RoPE(16), chunk_size=32), None),
    ],
)
def test_an_encoding_says_where_it_ends_while_it_is_installed(encoding: Encoding, longest: int | None) -> None:
    model = tiny("Llama")
    with installed(model, encoding):
        assert reach(model) == longest
    assert reach(model) is None


@pytest.mark.parametrize("longest", [None, 96, 64])
def test_lengths_past_the_end_are_refused(longest: Any) -> None:
    if longest == 64:
        with pytest.raises(ArgumentError, match=r"^furthest=3: m has positions for 64 tokens, 96 are wanted; ask for"):
            check_reach("m", longest, "furthest", 3, 96)
    else:
        check_reach("m", longest, "furthest", 3, 96)


class TestTokensThatAModelDoesNotKnow:
    """A tokenizer larger than the vocabulary is refused in one line wherever a text is read."""

    @pytest.fixture
    def model(self) -> Any:
        return tiny("Llama")

    def refused(self) -> Any:
        return pytest.raises(ArgumentError, match=r"tokenizer=.*has vectors for 0 to .*trained with")

    def test_the_last_known_one_is_taken(self, model: Any) -> None:
        known = model.get_input_embeddings().num_embeddings
        check_vocabulary(model, [0, known - 1])
        with self.refused():
            check_vocabulary(model, [0, known])

    def test_by_the_reader_the_likelihood_and_the_analysis(self, model: Any) -> None:
        ids = [1, 2, model.get_input_embeddings().num_embeddings]
        with self.refused():
            Reader(model, None).read(tuple(ids))  # type: ignore[arg-type]
        with self.refused():
            SharedReading(model, ids, [])
        with self.refused():
            token_nll(model, ids)
        with self.refused():
            measure(model, torch.tensor([ids]))
        with self.refused():
            inspect(model, torch.tensor([ids]))
