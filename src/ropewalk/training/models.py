"""A model to train: Llama's architecture at a recipe's sizes, then an encoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ropewalk.data.char_tokenizer import Characters
from ropewalk.encodings.absolute import Learned
from ropewalk.errors import ArgumentError
from ropewalk.patching.content_attention import is_own
from ropewalk.patching.input_limits import encoding_reach
from ropewalk.patching.install import install
from ropewalk.training.config import ModelSize
from ropewalk.training.presets import Named, Shape
from ropewalk.training.tasks.base import SequenceTask
from ropewalk.training.tasks.language import Language

_BASE = 10000.0
# Added to a seed for the draws of an encoding's own parameters, so that they aren't those of the first weights.
OWN_DRAWS = 7919


def shape(size: ModelSize, longest: int) -> Shape:
    """What an encoding is told of a model that is to read `longest` tokens."""
    return Shape(size.head_dim, size.heads, size.key_heads, size.hidden, size.positions or longest)


def build_model(size: ModelSize, vocabulary_size: int, longest: int, named: Named, seed: int) -> LlamaForCausalLM:
    """A causal model of Llama's architecture, in float32 on the CPU, with an encoding installed.

    RMSNorm before attention and MLP, no biases, gated MLP. All weights are drawn before the encoding is installed,
    which draws its own parameters from a generator of its own: with one seed the weights are the same whatever the
    encoding. The global generator is left as it was.

    Llama has dropout on attention weights alone; a recipe's `dropout` is added here by hooks, on the token vectors and
    on the outputs of each attention and MLP, while the model trains. They aren't saved: a loaded model has none.

    Args:
        size: the model's sizes.
        vocabulary_size: different tokens.
        longest: tokens of the longest sequence that it will read.
        named: the encoding, for `shape(size, longest)`.
        seed: of the weights.

    Raises:
        ArgumentError: the sequences are longer than the encoding's table; the encoding doesn't fit the sizes.
    """
    check_length(named, size, longest)
    config: Any = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        head_dim=size.head_dim,
        max_position_embeddings=size.positions or longest,
        attention_dropout=size.attention_dropout,
        tie_word_embeddings=size.tied,
        initializer_range=size.initial,
        rope_parameters={"rope_type": "default", "rope_theta": _BASE},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        model.to(torch.float32)
        torch.manual_seed(seed + OWN_DRAWS)
        install(model, named.encoding)
    if size.dropout:
        _add_dropout(model, size.dropout)
    return model  # type: ignore[no-any-return]


def check_length(named: Named, size: ModelSize, longest: int) -> None:
    """Refuse sequences that are longer than a learned table, or than xPos's numbers reach."""
    end = encoding_reach(named.encoding)
    if end is None or longest <= end:
        return
    if isinstance(named.encoding, Learned):
        remedy = f"the task's longest sequence has {longest} tokens, past the end of {named.name}'s table; give as many"
        raise ArgumentError("model.positions", size.positions, remedy)
    raise ArgumentError("encoding", named.name, f"it reaches {end} tokens, the task's longest sequence has {longest}")


def sizes(model: nn.Module) -> dict[str, int]:
    """How many numbers a model learns, and how many of them its installed encoding; before it is cut into shards."""
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    own = sum(count for name, count in counts.items() if is_own(name))
    return {"parameters": sum(counts.values()), "own_parameters": own}


def _add_dropout(model: LlamaForCausalLM, probability: float) -> None:
    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, probability, module.training)

    inner: Any = model.model
    for part in (
        inner.embed_tokens,
        *(p for layer in inner.layers for p in (layer.self_attn.o_proj, layer.mlp.down_proj)),
    ):
        part.register_forward_hook(drop)


_UNKNOWN = "<unknown>"  # longer than a character, so it can't be one of them


def spelling(task: SequenceTask) -> Any:
    """The tokenizer of a task whose tokens spell text, with `save_pretrained`; None for any other task.

    Reads the task's text when its tokens are characters.
    """
    if not isinstance(task, Language):
        return None
    made = task.load_tokenizer()
    return _characters(made.alphabet) if isinstance(made, Characters) else made


def _characters(alphabet: str) -> Any:
    """A tokenizer of transformers with the characters of `alphabet` as tokens from 1 on, and 0 for any other."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {_UNKNOWN: 0} | {character: place for place, character in enumerate(alphabet, start=1)}
    backend: Any = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=backend, unk_token=_UNKNOWN, clean_up_tokenization_spaces=False)
