"""Texts begin with the start token wherever a model reads one, if the tokenizer puts it there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import tiny
from tokenizers.processors import TemplateProcessing

from ropewalk.data.text import draw_window, draw_window_with_start, draw_windows, text_of
from ropewalk.encodings.rope import RoPE
from ropewalk.evaluation.calibration import calibrate
from ropewalk.evaluation.candidates import Candidate
from ropewalk.evaluation.likelihood import short_cost
from ropewalk.evaluation.records import Store
from ropewalk.patching import installed

TEXT = text_of(story(200), "story")
RULE = Candidate("plain", RoPE(16))


def beginning_tokenizer() -> Any:
    tokenizer = copy.deepcopy(byte_tokenizer())
    special = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    return tokenizer


def test_a_window_begins_with_it_and_keeps_its_length() -> None:
    tokenizer = beginning_tokenizer()
    ids = draw_window_with_start(TEXT, tokenizer, 50, 0.37)
    assert ids == [tokenizer.bos_token_id, *draw_window(TEXT, tokenizer, 49, 0.37)]
    assert all(len(one) == 50 and one[0] == tokenizer.bos_token_id for one in draw_windows(TEXT, tokenizer, 50, 3))


def test_a_tokenizer_without_one_adds_nothing() -> None:
    tokenizer = byte_tokenizer()
    assert draw_window_with_start(TEXT, tokenizer, 50, 0.37) == draw_window(TEXT, tokenizer, 50, 0.37)


@pytest.mark.parametrize("measure", ["statistics", "short cost"])
def test_every_pass_over_a_text_begins_with_it(tmp_path: Path, measure: str) -> None:
    model, tokenizer = tiny("Llama"), beginning_tokenizer()
    with installed(model, RULE.encoding):
        pass  # the model has passed its probing: the passes below are over the text
    first: list[int] = []

    def look(_: Any, args: tuple[torch.Tensor]) -> None:
        first.append(int(args[0][0, 0]))

    with Store(tmp_path / "r.jsonl", {}) as store:
        hook = model.get_input_embeddings().register_forward_pre_hook(look)
        if measure == "statistics":
            calibrate(model, tokenizer, TEXT, 60, RULE, store)
        else:
            short_cost(model, tokenizer, TEXT, 60, [RULE], store)
        hook.remove()
        keys = [record["key"] for record in store.records()]
    assert first and set(first) == {tokenizer.bos_token_id}
    assert all(key.endswith("/start") for key in keys)  # records made without it aren't taken for these
