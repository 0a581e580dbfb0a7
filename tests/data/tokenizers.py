"""Two tiny tokenizers and a text, made here: words split at spaces, and a byte-level BPE like GPT-2's."""

from __future__ import annotations

import functools
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ropewalk.tasks.needle import Wording
from ropewalk.tasks.needle_kinds import KINDS

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }} </s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def story(sentences: int, seed: int = 1) -> str:
    """Sentences that all begin with "The" and are all different, in paragraphs of six."""
    rng = random.Random(seed)
    words = ["rope", "yarn", "hemp", "tar", "spins", "walks", "long", "lane", "wheel", "hook", "turns"]
    lines = []
    for i in range(sentences):
        said = " ".join(rng.choice(words) for _ in range(rng.randint(4, 12)))
        lines.append(f"The {said} {i}.")
    return "\n".join(" ".join(lines[i : i + 6]) for i in range(0, sentences, 6))


def needles() -> str:
    """The needle task's sentences and questions."""
    said = [f"{kind.told('4132')} {kind.question}" for kind in KINDS]
    return " ".join([Wording().instruction, *said])


def _wrapped(tokenizer: Tokenizer, chat: bool) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = CHAT if chat else None
    return wrapped


@functools.cache
def word_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """A token for each word, digit and mark; adds a start token; unknown words are one token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    asked = "What is the special magic number for Question Answer : ? . a " + " ".join("0123456789")
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([story(200), asked], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(tokenizer, chat)


@functools.cache
def byte_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text round-trips; digits come in groups; adds no start token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    # Mostly the story, so that every one-digit number has a token together with its space.
    tokenizer.train_from_iterator([*[story(400)] * 5, needles()], trainer)
    return _wrapped(tokenizer, chat)
