"""The tokenizer of a trained model, as transformers keeps it, so that the model's folder can be used alone."""

from __future__ import annotations

from typing import Any

from ropewalk.tasks.characters import Characters, tokenizer_of
from ropewalk.tasks.language import Language
from ropewalk.tasks.sequences import SequenceTask

_UNKNOWN = "<unknown>"  # longer than a character, so it can't be one of them


def spelling(task: SequenceTask) -> Any:
    """The tokenizer of a task whose tokens spell text, with `save_pretrained`; None for any other task.

    Reads the task's text when its tokens are characters.
    """
    if not isinstance(task, Language):
        return None
    made = tokenizer_of(task)
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
